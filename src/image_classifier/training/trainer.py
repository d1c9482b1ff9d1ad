"""The mixed-precision loop. Knows no tracker and no file."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from image_classifier.core import runtime
from image_classifier.core.config import Training
from image_classifier.core.errors import UserError, is_out_of_memory
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches, deal, num_batches, shuffled
from image_classifier.model.inference import predict, with_progress
from image_classifier.model.numerics import Compute
from image_classifier.model.scores import averages, classification
from image_classifier.training.augment import draw
from image_classifier.training.distributed import Group
from image_classifier.training.feeding import Feed
from image_classifier.training.modes import recompute_statistics, train_mode
from image_classifier.training.schedule import current_rate, image_size
from image_classifier.training.sizes import AtSize
from image_classifier.training.stepper import Stepper
from image_classifier.training.timing import COMPUTE, EVALUATION, READING, Stopwatch

SHOWN = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
SCORES = ("precision", "recall", "f1_score")  # weighted by the size of the class


@dataclass
class Trainer:
    """A network and all that changes while it is trained on `train` and watched on `val`."""

    network: PreTrainedModel
    normalize: nn.Module  # from what the splits hold to what the network takes
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
        smallest = len(self.train) // num_batches(len(self.train), self.training.batch_size)
        if self.group.count > 1 and min(smallest, 2 * len(self.val)) < 2 * self.group.count:
            raise UserError(
                f"training.num_processes: {self.group.count} are too many for training.batch_size = "
                f"{self.training.batch_size}, or for the images: each needs two of every batch"
            )
        self.stepper = Stepper(
            self.network, self.normalize, self.precision, self.training, self.train, self.group, self.clock
        )
        self.feed = Feed(self.train, self.precision.device)

    def epochs(self) -> Iterator[dict[str, float]]:
        """Train the epochs that `history` does not hold yet, yielding the metrics of each.

        When an epoch is yielded, `state_dict` holds all that the rest depends on. The network is
        left with the weights of the best epoch.
        """
        for epoch in range(len(self.history), self.training.num_epochs):
            if self.has_settled():
                patience = self.training.patience
                print(f"train: no better in {patience} epochs (training.patience): ending after epoch {epoch}")
                break
            try:
                values = self._train_epoch(epoch)
                with self.clock(EVALUATION):
                    self.recompute_batch_norm(epoch)
                    for network in dict.fromkeys((self.network, self.stepper.shipped)):
                        self.group.average(network)
                    size = self.validation_size(epoch)
                    values |= {f"val_{name}": value for name, value in self.validate(size).items()}
                    values["val_image_size"] = size
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size, whose = self.training.batch_size, "the GPU's" if self.precision.device.type == "cuda" else "the"
                way = f"try {size // 2}" if size > 1 else "choose a smaller data.image_size"
                raise UserError(f"{whose} memory is full at training.batch_size = {size}: {way}") from None
            self.history.append(values)
            score = values["val_accuracy"], -values["val_loss"]
            if size == self.full_size and (not self.best or score > self.best["score"]):
                weights = copy.deepcopy(
                    {name: tensor.cpu() for name, tensor in self.stepper.shipped.state_dict().items()}
                )
                self.best = {"metrics": values | {"best_epoch": epoch}, "weights": weights, "score": score}
            yield values
        self.network.load_state_dict(self.best["weights"])

    def has_settled(self) -> bool:
        """Whether no epoch since the best one was better, for as many epochs as training.patience says."""
        if self.training.patience is None or not self.best:
            return False
        later = self.history[self.best["metrics"]["best_epoch"] + 1 :]
        return sum(values["val_image_size"] == self.full_size for values in later) >= self.training.patience

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Run one pass over the training images; return image_size, train_loss, train_accuracy, ..., learning_rate.

        The loss is the cross-entropy without label smoothing, as in validation. Augmentation follows from (seed, epoch,
        place in the order), dropout from (seed, epoch, step).
        """
        order = shuffled(len(self.train), self.seed, epoch)
        losses, predicted, labels, rates = self._run_steps(epoch, order)
        self._check_finite(epoch, losses, rates)
        scores = averages(labels, predicted)
        values = {"image_size": self.training_size(epoch), "train_loss": float(losses.sum() / len(order))}
        values["train_accuracy"] = float((predicted == labels).mean())
        return values | {f"train_{name}": scores[name] for name in SCORES} | {"learning_rate": rates[-1]}

    def _run_steps(self, epoch: int, order: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray, list[float]]:
        """Take every step of an epoch, this process with its part of each batch.

        Returns the summed loss of each batch [batches]; the class predicted for each image int64 [N] in `order`, and
        the one that it showed most of; and the learning rate of each batch.
        """
        size = self.training_size(epoch)
        group, batch_size = self.group, self.training.batch_size
        places = np.arange(len(order))
        batch_sizes = [len(batch) for batch in deal(places, batch_size)]  # of all processes together
        own_places = np.concatenate(deal(places, batch_size, group.index, group.count))
        accumulated = self.training.accumulate_batches
        train_mode(self.network)
        # What is measured stays on the device until the epoch ends: reading it would wait for the GPU.
        losses, guesses, shown, rates = [], [], [], []
        title = f"epoch {epoch + 1}/{self.training.num_epochs} at {size} px"
        draws = draw(len(order), self.seed, epoch) if self.stepper.augments else None
        own = self.clock.each(READING, self.feed.batches(batch_size, order, group, draws))
        for step, (images, labels, drawn) in enumerate(with_progress(own, len(own_places), title, group.first)):
            rates.append(current_rate(self.stepper.optimizer))
            # SeedSequence ignores trailing zeros, so that the first process draws what a single one would.
            seed = runtime.derive_seed(self.seed, epoch, step, group.index)
            start = step // accumulated * accumulated
            together = batch_sizes[start : start + accumulated]  # whose gradients make one step of the optimizer
            share = len(labels) * group.count / sum(together)
            loss, guess, label = self.stepper.step(
                images, labels, seed, size, drawn, share, step == start + len(together) - 1
            )
            losses.append(loss * len(labels))
            guesses.append(guess)
            shown.append(label)
        self.clock.images += len(order)
        with self.clock(COMPUTE):  # waits for the device
            sums = group.total(torch.stack(losses)).cpu()
            predicted, labels = (group.collect(torch.cat(part), own_places, len(order)) for part in (guesses, shown))
            return sums, predicted, labels, rates

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

    def recompute_batch_norm(self, epoch: int) -> None:
        """Replace the running batch-norm statistics, which lag behind the weights; not in a frozen network."""
        count = self.training.batch_norm_images
        if count is not None and all(parameter.requires_grad for parameter in self.network.parameters()):
            sample = batches(self.train, self.training.batch_size, shuffled(len(self.train), self.seed, epoch)[:count])
            with self.precision.autocast():
                pixels = (self.normalize(images.to(self.precision.device)) for images, _ in sample)
                recompute_statistics(self._at(self.validation_size(epoch)), pixels)

    def training_size(self, epoch: int) -> int:
        """The image size that an epoch trains at, in pixels."""
        return image_size(self.training.resolution_schedule, epoch, self.training.num_epochs, self.full_size)

    def validation_size(self, epoch: int) -> int:
        """The image size that an epoch is validated at: that of its training, and the full one in the last epoch."""
        return self.full_size if epoch == self.training.num_epochs - 1 else self.training_size(epoch)

    def _at(self, size: int) -> nn.Module:
        network = self.stepper.shipped
        return network if size == self.full_size else AtSize(network, size)

    def validate(self, size: int) -> dict[str, float]:
        """Loss, accuracy and weighted averages on val, its images scaled to `size` pixels on the device."""
        rows = np.array_split(np.arange(len(self.val)), self.group.count)[self.group.index]
        parts = batches(self.val, self.training.batch_size, rows)
        _, part = predict(self._at(size), self.normalize, parts, self.precision)
        probabilities = self.group.collect(torch.from_numpy(part).to(self.precision.device), rows, len(self.val))
        values = classification(self.val.labels.numpy(), probabilities)
        return {name: values[name] for name in ("loss", "accuracy", *SCORES)}

    def state_dict(self) -> dict:
        """Everything that the next epoch depends on: tensors and plain values alone."""
        own = {"history": self.history, "best": self.best, "num_processes": self.group.count}
        return {"stepper": self.stepper.state_dict(), **own}

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
        self.stepper.load_state_dict(state["stepper"])
        self.history, self.best = state["history"], state["best"]


def in_words(values: dict[str, float]) -> str:
    """The figures of an epoch that its line shows."""
    sizes = f"at {values['image_size']} px"
    if values["val_image_size"] != values["image_size"]:  # the last epoch of a schedule that ends below full size
        sizes += f", validated at {values['val_image_size']} px"
    return f"{sizes}: " + ", ".join(f"{name} {values[name]:.4f}" for name in SHOWN)
