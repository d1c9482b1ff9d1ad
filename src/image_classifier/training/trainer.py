"""The mixed-precision loop. Knows no tracker and no file."""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from image_classifier.core import runtime
from image_classifier.core.config import Training
from image_classifier.core.errors import UserError
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches, deal, num_batches, shuffled
from image_classifier.model.inference import predict, with_progress
from image_classifier.model.normalize import Normalize
from image_classifier.model.numerics import Compute
from image_classifier.model.scores import averages, classification
from image_classifier.training.augment import augment, augmentation, rescale
from image_classifier.training.distributed import Group
from image_classifier.training.feeding import Feed
from image_classifier.training.modes import recompute_statistics, train_mode
from image_classifier.training.schedule import build_optimizer, build_scheduler, image_size
from image_classifier.training.sizes import AtSize, check_sizes, forward_options, smallest_batches
from image_classifier.training.timing import COMPUTE, COPYING, EVALUATION, OPTIMIZER, READING, Stopwatch

PARTS = ("network", "optimizer", "scheduler", "scaler")  # of a Trainer: they hold state
SHOWN = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
SCORES = ("precision", "recall", "f1_score")  # weighted by the size of the class


@dataclass
class Trainer:
    """A network and all that changes while it is trained on `train` and watched on `val`."""

    network: PreTrainedModel
    normalize: Normalize
    precision: Compute
    training: Training
    seed: int
    train: ShardReader
    val: ShardReader
    group: Group = field(default_factory=Group)  # this process among those that train the same network
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per finished epoch
    best: dict = field(default_factory=dict)  # `metrics`, `weights` and `score` of the best epoch on val
    clock: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self):
        self.full_size = self.train.resize.size
        check_sizes(self.network, smallest_batches(self.training, len(self.train), self.full_size))
        self.precision.place(self.network)
        self.normalize.to(self.precision.device)
        steps = self.training.num_epochs * num_batches(len(self.train), self.training.batch_size)
        least = min(len(self.train), self.training.batch_size, 2 * len(self.val))
        if self.group.count > 1 and least < 2 * self.group.count:
            raise UserError(
                f"training.num_processes: {self.group.count} are too many for training.batch_size = "
                f"{self.training.batch_size}, or for the images: each needs two of a batch"
            )
        images = hashlib.sha256("".join(self.train.hashes + self.val.hashes).encode()).hexdigest()
        self.group.agree(f"{self.training} {self.seed} {self.precision.name} {self.network.config} {images}")
        joined = self.group.join(self.network)
        self.optimizer = build_optimizer(self.network, self.training)
        self.scheduler = build_scheduler(self.optimizer, self.training, steps)
        self.scaler = self.precision.scaler()
        # On the CPU compiling takes minutes and gains nothing.
        compiles = self.training.use_compile and self.precision.device.type == "cuda"
        self.forward = torch.compile(joined) if compiles else joined
        self.feed = Feed(self.train, self.precision.device)
        self.augmentation = None
        if not self.training.fast_mode:
            self.augmentation = augmentation(self.training.augmentation, self.train.resize.size)

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
                        self.recompute_batch_norm(epoch)
                    self.group.average(self.network)
                    size = self.validation_size(epoch)
                    values |= {f"val_{name}": value for name, value in self.validate(size).items()}
                    values["val_image_size"] = size
            except torch.OutOfMemoryError:
                size = self.training.batch_size
                way = f"try {size // 2}" if size > 1 else "choose a smaller data.image_size"
                raise UserError(f"the GPU's memory is full at training.batch_size = {size}: {way}") from None
            self.history.append(values)
            score = values["val_accuracy"], -values["val_loss"]
            if size == self.full_size and (not self.best or score > self.best["score"]):
                weights = copy.deepcopy({name: tensor.cpu() for name, tensor in self.network.state_dict().items()})
                self.best = {"metrics": values | {"best_epoch": epoch}, "weights": weights, "score": score}
            yield values
        self.network.load_state_dict(self.best["weights"])

    def follow(self) -> None:
        """Train beside the first process, which logs and saves for all."""
        for _ in self.epochs():
            pass

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Run one pass over the training images; return image_size, train_loss, train_accuracy, ..., learning_rate.

        The loss is the cross-entropy without label smoothing, as in validation. Augmentation and dropout follow from
        (seed, epoch, step).
        """
        order = shuffled(len(self.train), self.seed, epoch)
        losses, predicted, rates = self._run_steps(epoch, order)
        self._check_finite(epoch, losses, rates)
        labels = self.train.labels.numpy()
        scores = averages(labels, predicted)
        values = {"image_size": self.training_size(epoch), "train_loss": float(losses.sum() / len(order))}
        values["train_accuracy"] = float((predicted == labels).mean())
        return values | {f"train_{name}": scores[name] for name in SCORES} | {"learning_rate": rates[-1]}

    def _run_steps(self, epoch: int, order: np.ndarray) -> tuple[Tensor, np.ndarray, list[float]]:
        """Take every step of an epoch, this process with its part of each batch.

        Returns the summed loss of each step [steps], the class predicted for each image int64 [N], as numbered in the
        split, and the learning rate of each step.
        """
        size = self.training_size(epoch)
        group, batch_size = self.group, self.training.batch_size
        batch_sizes = [len(batch) for batch in deal(order, batch_size)]  # of all processes together
        own_rows = np.concatenate(deal(order, batch_size, group.index, group.count))
        train_mode(self.network)
        # What is measured stays on the device until the epoch ends: reading it would wait for the GPU.
        losses, guesses, rates = [], [], []
        title = f"epoch {epoch + 1}/{self.training.num_epochs} at {size} px"
        own = self.clock.each(READING, self.feed.batches(batch_size, order, group))
        for step, (images, labels) in enumerate(with_progress(own, len(own_rows), title, group.first)):
            rates.append(self.optimizer.param_groups[0]["lr"])
            # SeedSequence ignores trailing zeros, so that the first process draws what a single one would.
            seed = runtime.derive_seed(self.seed, epoch, step, group.index)
            share = len(labels) * group.count / batch_sizes[step]
            loss, guess = self.step(images, labels, seed, size, share)
            losses.append(loss * len(labels))
            guesses.append(guess)
        self.clock.images += len(order)
        with self.clock(COMPUTE):  # waits for the device
            sums = group.total(torch.stack(losses)).cpu()
            return sums, group.collect(torch.cat(guesses), own_rows, len(order)), rates

    def _check_finite(self, epoch: int, losses: Tensor, rates: list[float]) -> None:
        """Raise UserError where a loss, or a weight after the last step, is NaN or infinite."""
        bad = (~losses.isfinite()).nonzero()[:, 0].tolist()
        if not bad and not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            bad = [len(losses) - 1]  # the last step's update, which no loss of this epoch has seen
        if bad:
            raise UserError(
                f"loss is NaN or infinite at epoch {epoch + 1}, step {bad[0] + 1} of {len(losses)}, learning rate "
                f"{rates[bad[0]]:g}: lower training.learning_rate, or set training.gradient_clip"
            )

    def step(self, images: Tensor, labels: Tensor, seed: int, size: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Take one step; return the mean loss before it, and the classes predicted int64 [N].

        `share` is how many of the batch's images are here, relative to an equal share of the processes.
        """
        training, device = self.training, self.precision.device
        torch.manual_seed(seed)  # augmentation and dropout
        with self.clock(COPYING):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if self.augmentation is not None:
                images = augment(images, self.augmentation)
            pixels = rescale(self.normalize(images), size)
        with self.clock(COMPUTE):
            with self.precision.autocast():
                logits = self.forward(pixel_values=pixels, **forward_options(self.network, size)).logits
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

    def recompute_batch_norm(self, epoch: int) -> None:
        """Replace the running batch-norm statistics, which lag after a short run; not in a frozen network."""
        images = self.training.batch_norm_images
        if images is not None and all(parameter.requires_grad for parameter in self.network.parameters()):
            sample = batches(self.train, self.training.batch_size, shuffled(len(self.train), self.seed, epoch)[:images])
            with self.precision.autocast():
                recompute_statistics(self.network, (self.normalize(i.to(self.precision.device)) for i, _ in sample))

    def training_size(self, epoch: int) -> int:
        """The image size that an epoch trains at, in pixels."""
        return image_size(self.training.resolution_schedule, epoch, self.training.num_epochs, self.full_size)

    def validation_size(self, epoch: int) -> int:
        """The image size that an epoch is validated at: that of its training, and the full one in the last epoch."""
        return self.full_size if epoch == self.training.num_epochs - 1 else self.training_size(epoch)

    def validate(self, size: int) -> dict[str, float]:
        """Loss, accuracy and weighted averages on val, its images scaled to `size` pixels on the device."""
        rows = np.array_split(np.arange(len(self.val)), self.group.count)[self.group.index]
        parts = batches(self.val, self.training.batch_size, rows)
        network = self.network if size == self.full_size else AtSize(self.network, size)
        _, part = predict(network, self.normalize, parts, self.precision)
        probabilities = self.group.collect(torch.from_numpy(part).to(self.precision.device), rows, len(self.val))
        values = classification(self.val.labels.numpy(), probabilities)
        return {name: values[name] for name in ("loss", "accuracy", *SCORES)}

    def state_dict(self) -> dict:
        """Everything that the next epoch depends on: tensors and plain values alone."""
        parts = {name: getattr(self, name).state_dict() for name in PARTS}
        return {**parts, "history": self.history, "best": self.best, "num_processes": self.group.count}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned.

        Raises UserError: it is of another number of processes, which round differently.
        """
        if state["num_processes"] != self.group.count:
            raise UserError(
                f"this training was begun with {state['num_processes']} processes and cannot go on with "
                f"{self.group.count}: set training.num_processes={state['num_processes']}, or remove .resume to start "
                "afresh"
            )
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.history, self.best = state["history"], state["best"]


def in_words(values: dict[str, float]) -> str:
    """The figures of an epoch that its line shows."""
    sizes = f"at {values['image_size']} px"
    if values["val_image_size"] != values["image_size"]:  # the last epoch of a schedule that ends below full size
        sizes += f", validated at {values['val_image_size']} px"
    return f"{sizes}: " + ", ".join(f"{name} {values[name]:.4f}" for name in SHOWN)
