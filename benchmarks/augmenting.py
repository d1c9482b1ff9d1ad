"""Augmentation on the CPU: a whole batch at once against torchvision's transforms, one image after the other.

    python -m benchmarks.augmenting

Both change batches of 32 of 512 uint8 images of 160 px: flips, crops of an image mirrored at its edges, TrivialAugment.
"""

import time

import numpy as np
import torch
from torch import Tensor

from benchmarks import pairs
from image_classifier.core import config, runtime

COLUMNS = pairs.columns("images/s", "torchvision")
COUNT, BATCH_SIZE, SIZE, PASSES, PADDING = 512, 32, 160, 5, 0.125


def images() -> Tensor:
    """uint8 [COUNT, SIZE, SIZE, 3]: waves of random length, direction and color."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE][..., None] / SIZE
    waves = generator.normal(0, 20, (COUNT, 2, 1, 1, 3))
    values = (np.sin(along * x + across * y) for along, across in waves)
    return torch.from_numpy(np.stack([(128 + 127 * value).astype(np.uint8) for value in values]))


def batch() -> float:
    """Images per second of `augment`."""
    from image_classifier.training.augment import augment, draw

    runtime.configure(None)
    off = config.load(pairs.ROOT / "params.yaml").training.augmentation
    settings = off.model_copy(update={"horizontal_flip": True, "crop_padding": PADDING, "trivial_augment": True})
    whole = images()
    for epoch in range(PASSES):
        start = time.perf_counter()
        for part, draws in zip(whole.split(BATCH_SIZE), draw(COUNT, 0, epoch).split(BATCH_SIZE), strict=True):
            changed = augment(part, draws, settings)
    assert changed.shape == (BATCH_SIZE, SIZE, SIZE, 3)
    return COUNT / (time.perf_counter() - start)


def torchvision() -> float:
    """Images per second of the same by torchvision."""
    from torchvision.transforms import v2

    runtime.configure(None)
    crop = v2.RandomCrop(SIZE, padding=round(PADDING * SIZE), padding_mode="reflect")
    change = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()])
    whole = images()
    torch.manual_seed(0)
    for _ in range(PASSES):
        start = time.perf_counter()
        for part in whole.split(BATCH_SIZE):
            channels_first = part.permute(0, 3, 1, 2)
            changed = torch.stack([change(image) for image in channels_first]).permute(0, 2, 3, 1)
    assert changed.shape == (BATCH_SIZE, SIZE, SIZE, 3)
    return COUNT / (time.perf_counter() - start)


if __name__ == "__main__":
    ways = {"batch": batch, "torchvision": torchvision}
    pairs.main("Augmentation: a batch at once, on the CPU", "images/s", ways, ["torch", "torchvision"])
