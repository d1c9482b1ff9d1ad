"""One step of the optimizer: augmentation, forward, loss, backward, update."""

import copy
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from image_classifier.core.config import Training
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import num_batches
from image_classifier.model.numerics import Compute
from image_classifier.training.augment import augment, is_random, mixing, rescale
from image_classifier.training.distributed import Group
from image_classifier.training.schedule import build_optimizer, build_scheduler
from image_classifier.training.sizes import forward_options
from image_classifier.training.timing import COMPUTE, COPYING, OPTIMIZER, Stopwatch

COMPILERS = ("cc", "gcc", "clang")
PARTS = ("network", "averaged", "optimizer", "scheduler", "scaler")  # of a Stepper: they hold state


def compile_fault() -> str | None:
    """What torch.compile would miss: it writes C code against Python's headers; None if nothing."""
    if not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        return "there is no C compiler; install gcc"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are missing; install python3-dev"
    return None


def compiled(network: nn.Module, num_sizes: int) -> Callable:
    """The network compiled when it first sees an image size, once for each of the two lengths that batches have.

    Past its limit of eight graphs torch would run the others as they are, and only warn.
    """
    import torch._dynamo  # takes a second, and few need it

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * num_sizes)
    return torch.compile(network, dynamic=False)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """A weight for each class, float32 [classes], inverse to its number of images; their mean over the images is 1."""
    counts = torch.bincount(labels, minlength=num_classes)
    return len(labels) / (counts.clamp(min=1) * counts.count_nonzero()).float()


@torch.no_grad()
def average(averaged: nn.Module, current: nn.Module, weight: float) -> None:
    """Move weights and running statistics part of the way to the current ones; indices and counts are copied.

    torch's AveragedModel does the same, but reads its step count back from the GPU in every step.
    """
    own, others = (chain(network.parameters(), network.buffers()) for network in (averaged, current))
    pairs = list(zip(own, others, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([old for old, _ in floats], [new for _, new in floats], weight)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)


@dataclass
class Stepper:
    """A network, its optimizer, and all that changes with each step on images of `train`."""

    network: PreTrainedModel
    normalize: nn.Module
    precision: Compute
    training: Training
    train: ShardReader
    group: Group
    clock: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self):
        training, device = self.training, self.precision.device
        self.averaged = None  # the moving average of the weights
        if training.ema_decay is not None:  # copied before `place` ties methods to the modules they are of
            self.averaged = copy.deepcopy(self.network)
            self.precision.place(self.averaged)
        self.precision.place(self.network)
        self.normalize.to(device)
        joined = self.group.join(self.network)
        self.optimizer = build_optimizer(self.network, training)
        batches = num_batches(len(self.train), training.batch_size)
        steps = training.num_epochs * num_batches(batches, training.accumulate_batches)
        self.scheduler = build_scheduler(self.optimizer, training, steps)
        self.scaler = self.precision.scaler()
        self.forward: Callable = joined
        if training.use_compile and device.type == "cuda":  # on the CPU compiling takes minutes and gains nothing
            if fault := compile_fault():
                print(f"train: training.use_compile is left out: {fault}")
            else:
                self.forward = compiled(joined, len(set(training.resolution_schedule or [0])))
        num_classes = len(self.train.class_names)
        self.augments, self.mixing = is_random(training.augmentation), mixing(training.augmentation, num_classes)
        if training.fast_mode:
            changes = self.mixing or is_random(training.augmentation.model_copy(update={"horizontal_flip": False}))
            if changes and self.group.first:
                print("train: training.augmentation is left out: training.fast_mode is true")
            self.augments, self.mixing = False, None
        self.class_weights = None
        if training.class_weights:
            self.class_weights = class_weights(self.train.labels, num_classes).to(device)

    @property
    def shipped(self) -> PreTrainedModel:
        """The network that is validated and kept: with its weights as they are, or averaged over the steps."""
        return self.network if self.averaged is None else self.averaged

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        seed: int,
        size: int,
        draws: Tensor | None = None,
        share: float = 1.0,
        update: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of a batch, and take a step with all that was added where `update` is set.

        Images are uint8 [N, H, W, 3], to be augmented where they have `draws`. Returns their mean loss before the step;
        their predicted classes, and those that they show most of, int64 [N]: mixup and cutmix may change the latter.
        `share` is how many of the step's images these are, relative to an equal share of the processes.
        """
        device = self.precision.device
        torch.manual_seed(seed)  # mixup, cutmix and dropout
        with self.clock(COPYING):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if draws is not None:
                images = augment(images, draws, self.training.augmentation)
            pixels, targets = rescale(self.normalize(images), size), labels
            if self.mixing is not None:
                pixels, targets = self.mixing(pixels, labels)
                labels = targets.argmax(1)
        with self.clock(COMPUTE):
            with self.precision.autocast():
                logits = self.forward(pixel_values=pixels, **forward_options(self.network, size)).logits
            logits = logits.float()
            smoothing = self.training.label_smoothing
            if self.class_weights is None or not smoothing:
                losses = F.cross_entropy(
                    logits, targets, self.class_weights, reduction="sum", label_smoothing=smoothing
                )
            else:
                losses = smoothed_loss(logits, targets, self.class_weights, smoothing)
            # Divided by the images, not by their weights: what an image counts does not depend on those beside it.
            loss = losses / len(labels) * share
            self.scaler.scale(loss).backward()
        if update:
            with self.clock(OPTIMIZER):
                self._update()
        logits = logits.detach()
        return F.cross_entropy(logits, labels), logits.argmax(1), labels

    def _update(self) -> None:
        if self.training.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.training.gradient_clip)
        with self.precision.autocast():  # Muon multiplies matrices
            self.scaler.step(self.optimizer)  # leaves the weights alone when a gradient overflowed
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.averaged is not None and (decay := self.training.ema_decay):
            is_first = self.scheduler.last_epoch == 1
            average(self.averaged, self.network, 1.0 if is_first else 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: tensors and plain values alone."""
        return {name: part.state_dict() for name in PARTS if (part := getattr(self, name)) is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])


def smoothed_loss(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The summed cross-entropy of labels int64 [N] or shares [N, classes], weighted by class and smoothed.

    The smoothing term has the weight of its image. torch gives each class in that term the class's own weight, and with
    a rare enough class the loss is then lowest if every image is predicted to be of that class.
    """
    own = F.cross_entropy(logits, targets, weights, reduction="none")
    of_image = weights[targets] if targets.ndim == 1 else targets @ weights
    return ((1 - smoothing) * own - smoothing * of_image * logits.log_softmax(dim=1).mean(dim=1)).sum()
