"""What rare classes need: to be seen as often as the others, or to weigh more in the loss."""

import numpy as np
import torch
from torch import Tensor

from image_classifier.core import runtime


def balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """An epoch of as many images as there are, of each class equally many: their numbers int64 [N] in random order.

    A class gives each of its images before it gives one again. A function of (seed, epoch), as `shuffled` is.
    """
    generator = np.random.default_rng(runtime.derive_seed(seed, epoch))
    classes = generator.permutation(np.unique(labels))  # the first ones give the images that are left over
    parts = []
    for place, label in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        wanted = (len(labels) + len(classes) - 1 - place) // len(classes)
        rounds = [generator.permutation(rows) for _ in range(-(-wanted // len(rows)))]
        parts.append(np.concatenate([rows[:0], *rounds])[:wanted])
    return generator.permutation(np.concatenate(parts))


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """A weight for each class, float32 [classes], inverse to its number of images; their mean over the images is 1."""
    counts = torch.bincount(labels, minlength=num_classes)
    return len(labels) / (counts.clamp(min=1) * counts.count_nonzero()).float()
