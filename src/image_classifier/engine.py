"""The mixed-precision loop: train an epoch, predict. Knows no tracker and no file."""

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import update_bn
from tqdm import tqdm
from transformers import PreTrainedModel

from image_classifier import metrics, models, preprocess
from image_classifier.config import Training
from image_classifier.distributed import Ranks
from image_classifier.errors import UserError
from image_classifier.precision import Precision
from image_classifier.preprocess import Normalize
from image_classifier.runtime import derive_seed
from image_classifier.shards import ShardReader, dealt, num_batches, prefetched, shuffled
from image_classifier.timing import COMPUTE, COPYING, EVALUATION, OPTIMIZER, READING, Stopwatch

PARTS = ("network", "optimizer", "scheduler", "scaler")  # of a Trainer: they hold state
SCORES = ("precision", "recall", "f1_score")  # weighted by the size of the class
Batches = Iterable[tuple[Tensor, Tensor]]  # (images uint8 [N, H, W, 3], labels int64 [N])


def image_size(schedule: list[int] | None, epoch: int, num_epochs: int, full_size: int) -> int:
    """The training resolution of an epoch (from 0): the schedule's sizes share the epochs equally.

    After MobileViT's multi-scale sampler, section 3.2 of arXiv 2110.02178. With fewer epochs than
    sizes the last sizes are kept.
    """
    if schedule is None:
        return full_size
    return schedule[-1 - (num_epochs - 1 - epoch) * len(schedule) // num_epochs]


def build_optimizer(network: nn.Module, training: Training) -> Optimizer:
    """The optimiser over all parameters that may change."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]  # of norms, and biases
    vector_decay = training.weight_decay if training.decay_norms_and_biases else 0.0
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": vector_decay},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(groups, lr=training.learning_rate, betas=(0.9, training.adam_beta2), fused=True)


def build_scheduler(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate of each of `steps` steps; `warmup_fraction` of them lead up to the peak."""
    warmup = training.warmup_fraction * steps
    shapes = {"none": lambda left: 1.0, "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2, "one_cycle": float}

    def share_of_peak(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return shapes[training.scheduler]((steps - step) / (steps - warmup))

    return lr_scheduler.LambdaLR(optimizer, share_of_peak)


@dataclass
class Trainer:
    """A network and all that changes while it is trained on `train` and watched on `val`."""

    network: PreTrainedModel
    normalize: Normalize
    precision: Precision
    training: Training
    seed: int
    train: ShardReader
    val: ShardReader
    ranks: Ranks = field(default_factory=Ranks)  # this process among those that train the same network
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per finished epoch
    best: dict = field(default_factory=dict)  # `metrics`, `weights` and `rank` of the best epoch on val
    clock: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self):
        self._check_sizes()
        self.precision.place(self.network)
        self.normalize.to(self.precision.device)
        steps = self.training.num_epochs * num_batches(len(self.train), self.training.batch_size)
        least = min(len(self.train), self.training.batch_size, 2 * len(self.val))
        if self.ranks.count > 1 and least < 2 * self.ranks.count:
            raise UserError(
                f"training.num_processes: {self.ranks.count} are too many for training.batch_size = "
                f"{self.training.batch_size}, or for the pictures: each needs two of a batch"
            )
        pictures = hashlib.sha256("".join(self.train.hashes + self.val.hashes).encode()).hexdigest()
        self.ranks.agree(f"{self.training} {self.seed} {self.precision.name} {self.network.config} {pictures}")
        joined = self.ranks.join(self.network)
        self.optimizer = build_optimizer(self.network, self.training)
        self.scheduler = build_scheduler(self.optimizer, self.training, steps)
        self.scaler = self.precision.scaler()
        # On the CPU compiling takes minutes and gains nothing.
        compiles = self.training.use_compile and self.precision.device.type == "cuda"
        self.forward = torch.compile(joined) if compiles else joined
        # A quarter of a GPU's free memory may hold the training set; the rest is for activations.
        num_bytes = sum(images.nbytes for images in self.train.images)
        if self.precision.device.type == "cuda" and num_bytes <= torch.cuda.mem_get_info()[0] / 4:
            self.train.to(self.precision.device)
        self.augmentation = None
        if not self.training.fast_mode:
            self.augmentation = preprocess.augmentation(self.training.augmentation, self.train.resize.size)

    def epochs(self) -> Iterator[dict[str, float]]:
        """Train the epochs that `history` does not hold yet, yielding the metrics of each.

        When an epoch is yielded, `state_dict` holds all that the rest depends on. The network is
        left with the weights of the best epoch.
        """
        for epoch in range(len(self.history), self.training.num_epochs):
            try:
                values = self._train_epoch(epoch)
                with self.clock(EVALUATION):
                    if epoch == self.training.num_epochs - 1:
                        self._recompute_batch_norm(epoch)
                    self.ranks.average(self.network)
                    values |= {f"val_{name}": value for name, value in self._validate().items()}
            except torch.OutOfMemoryError:
                size = self.training.batch_size
                way = f"try {size // 2}" if size > 1 else "choose a smaller data.image_size"
                raise UserError(f"the GPU's memory is full at training.batch_size = {size}: {way}") from None
            self.history.append(values)
            rank = values["val_accuracy"], -values["val_loss"]
            if not self.best or rank > self.best["rank"]:
                weights = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
                self.best = {"metrics": values | {"best_epoch": epoch}, "weights": copy.deepcopy(weights), "rank": rank}
            yield values
        self.network.load_state_dict(self.best["weights"])

    def follow(self, kept: dict | None) -> None:
        """Train beside the first process, which does all that is to be seen; go on from `kept`, if it has that."""
        if kept:
            self.load_state_dict(kept)
        for _ in self.epochs():
            pass

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training pictures; augmentation and dropout follow from (seed, epoch, step).

        The loss is the cross-entropy without label smoothing, as in validation.
        """
        size = image_size(self.training.resolution_schedule, epoch, self.training.num_epochs, self.train.resize.size)
        order, count = shuffled(len(self.train), self.seed, epoch), len(self.train)
        rank, ranks = self.ranks.rank, self.ranks.count
        whole = [len(batch) for batch in dealt(order, self.training.batch_size)]  # of all processes
        rows = np.concatenate(dealt(order, self.training.batch_size, rank, ranks))  # of this one
        _train_mode(self.network)
        # What is measured stays on the device until the epoch ends: reading it would wait for the GPU.
        losses, rates, guesses = [], [], []
        title = f"epoch {epoch + 1}/{self.training.num_epochs} at {size} px"
        batches = with_progress(self.clock.each(READING, self._batches(order)), len(rows), title, self.ranks.first)
        for step, (images, labels) in enumerate(batches):
            rates.append(self.optimizer.param_groups[0]["lr"])
            seed = derive_seed(self.seed, epoch, step, rank)  # a last zero changes nothing
            loss, guess = self._step(images, labels, seed, size, share=len(labels) * ranks / whole[step])
            losses.append(loss * len(labels))
            guesses.append(guess)
        self.clock.images += count
        with self.clock(COMPUTE):  # waits for the device
            sums = self.ranks.total(torch.stack(losses)).cpu()
            predicted = self.ranks.collect(torch.cat(guesses), rows, count)
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            sums[-1] = math.nan  # of the last step, whose update no loss of this epoch has seen
        if len(lost := (~sums.isfinite()).nonzero()):
            raise UserError(
                f"the loss is no number in epoch {epoch + 1}, step {int(lost[0]) + 1} of {len(sums)}, learning rate "
                f"{rates[int(lost[0])]:g}: lower training.learning_rate, or set training.gradient_clip"
            )
        labels = self.train.labels.numpy()
        values = {"train_loss": float(sums.sum() / count), "train_accuracy": float((predicted == labels).mean())}
        scores = metrics.averages(labels, predicted)
        return values | {f"train_{name}": scores[name] for name in SCORES} | {"learning_rate": rates[-1]}

    def _batches(self, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.train.batches(self.training.batch_size, order, self.ranks.rank, self.ranks.count)
        fetches = self.precision.device.type == "cuda" and not self.train.resident
        return prefetched(batches, pin=True) if fetches else batches

    def _step(self, images: Tensor, labels: Tensor, seed: int, size: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """One step; `share` is how many of the batch's pictures are here, relative to an equal share of the processes.

        Returns the mean loss before it, and the classes predicted int64 [N].
        """
        training, device = self.training, self.precision.device
        torch.manual_seed(seed)  # augmentation and dropout
        with self.clock(COPYING):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if self.augmentation is not None:
                images = preprocess.augment(images, self.augmentation)
            pixels = preprocess.rescale(self.normalize(images), size)
        with self.clock(COMPUTE):
            with self.precision.autocast():
                logits = self.forward(pixel_values=pixels, **models.forward_options(self.network, size)).logits
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing) * share
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
        with self.clock(OPTIMIZER):
            if training.gradient_clip is not None:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.network.parameters(), training.gradient_clip)
            self.scaler.step(self.optimizer)  # leaves the weights alone when a gradient overflowed
            self.scaler.update()
            self.scheduler.step()
        logits = logits.detach()
        return F.cross_entropy(logits, labels), logits.argmax(1)

    def _recompute_batch_norm(self, epoch: int) -> None:
        """Replace the running batch-norm statistics, which lag after a short run, by fresh ones."""
        frozen = not all(parameter.requires_grad for parameter in self.network.parameters())
        if self.training.batch_norm_images is None or frozen:
            return  # frozen means its batch-norm statistics too
        sample = shuffled(len(self.train), self.seed, epoch)[: self.training.batch_norm_images]
        batches = self.train.batches(self.training.batch_size, sample)
        # Dropout, which scales what is left, would bias the variances.
        named = [(module, name) for module in self.network.modules() for name in ("p", "drop_prob")]
        rates = [(*pair, getattr(*pair)) for pair in named if isinstance(getattr(*pair, None), float)]
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        with torch.no_grad(), self.precision.autocast():
            update_bn((self.normalize(images.to(self.precision.device)) for images, _ in batches), self.network)
        for module, name, rate in rates:
            setattr(module, name, rate)

    def _validate(self) -> dict[str, float]:
        rows = np.array_split(np.arange(len(self.val)), self.ranks.count)[self.ranks.rank]
        batches = self.val.batches(self.training.batch_size, rows)
        _, part = predict(self.network, self.normalize, batches, self.precision)
        probabilities = self.ranks.collect(torch.from_numpy(part).to(self.precision.device), rows, len(self.val))
        values = metrics.classification(self.val.labels.numpy(), probabilities)
        return {name: values[name] for name in ("loss", "accuracy", *SCORES)}

    def state_dict(self) -> dict:
        """Everything that the next epoch depends on: tensors and plain values alone."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return {**parts, "history": self.history, "best": self.best, "num_processes": self.ranks.count}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned.

        Raises UserError: it is of another number of processes, which round differently.
        """
        if state["num_processes"] != self.ranks.count:
            raise UserError(
                f"this training was begun with {state['num_processes']} processes and cannot go on with "
                f"{self.ranks.count}: set training.num_processes={state['num_processes']}, or remove .resume to start "
                "afresh"
            )
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.history, self.best = state["history"], state["best"]

    def _check_sizes(self) -> None:
        """Try the smallest batch at every size that training will use, before anything is trained.

        Raises UserError: the network cannot take it.
        """
        training, count, full_size = self.training, len(self.train), self.train.resize.size
        epochs = range(training.num_epochs)
        sizes = {image_size(training.resolution_schedule, e, training.num_epochs, full_size) for e in epochs}
        tried = dict.fromkeys(sizes, count // num_batches(count, training.batch_size))
        if training.batch_norm_images:  # on which the statistics are recomputed at full size
            sample = min(training.batch_norm_images, count)
            smallest = sample // num_batches(sample, training.batch_size)
            tried[full_size] = min(smallest, tried.get(full_size, smallest))
        was_training = [(module, module.training) for module in self.network.modules()]
        _train_mode(self.network)
        models.check_sizes(self.network, {size: min(smallest, 2) for size, smallest in tried.items()})
        for module, training_mode in was_training:
            module.training = training_mode


def _train_mode(network: nn.Module) -> None:
    """Training mode, but for frozen parts: their batch-norm statistics stay as they are too."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def with_progress(batches: Batches, count: int, title: str, shown: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, of `count` pictures in all, with a progress bar on a terminal if it is to be shown."""
    with tqdm(total=count, desc=title, unit=" images", leave=False, disable=None if shown else True) as bar:
        for images, labels in batches:
            yield images, labels
            bar.update(len(labels))


@torch.inference_mode()
def predict(
    network: PreTrainedModel, normalize: Normalize, batches: Batches, precision: Precision
) -> tuple[np.ndarray, np.ndarray]:
    """Classify every picture: labels int64 [N] and probabilities float32 [N, classes].

    Raises UserError: an output is no number.
    """
    network.eval()
    all_labels, all_probabilities = [], []
    for images, labels in batches:
        with precision.autocast():
            logits = network(pixel_values=normalize(images.to(precision.device))).logits
        all_probabilities.append(logits.float().softmax(dim=1).cpu())
        all_labels.append(labels)
    labels, probabilities = torch.cat(all_labels), torch.cat(all_probabilities)
    if not probabilities.isfinite().all():
        raise UserError("the network's outputs are no numbers: train again with a lower training.learning_rate")
    return labels.numpy(), probabilities.numpy()
