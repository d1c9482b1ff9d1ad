"""Random changes of training images, a whole batch at once, and their size on the device.

What `augment` does to an image follows from (seed, epoch, its place in the order of the epoch), not from the batch that
it is in or the process that trains on it; mixup and cutmix mix what a batch holds. The number of operations does not
depend on the size of the batch, and none of them waits for a GPU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from image_classifier.core import runtime
from image_classifier.core.config import Augmentation
from image_classifier.training import colors

# Of TrivialAugment, in its wide space (arXiv 2103.10158, table 1), whose 32 pixels are a fifth of the side here.
MOVING = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = ("identity", *MOVING, *(change.__name__ for change in (*colors.BY_FACTOR, *colors.BY_STRENGTH)))
SHEAR, TRANSLATION, ROTATION, FACTOR = 0.99, 0.2, math.radians(135), 0.99  # at full strength
LOG_RATIO = math.log(4 / 3)  # of a resized crop's sides, at most


class Draws(NamedTuple):
    """Numbers in [0, 1) for each of N images, float32 [N]: all that is random about them."""

    flip: Tensor
    shift_y: Tensor
    shift_x: Tensor
    top: Tensor
    left: Tensor
    area: Tensor
    ratio: Tensor
    angle: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    operation: Tensor
    strength: Tensor
    sign: Tensor


def draw(count: int, seed: int, epoch: int) -> Tensor:
    """The draws of an epoch for `count` images in the order in which it sees them, float32 [count, len(Draws)]."""
    generator = np.random.default_rng(runtime.derive_seed(seed, epoch, len(Draws._fields)))
    return torch.from_numpy(generator.random((count, len(Draws._fields)), dtype=np.float32))


def is_random(settings: Augmentation) -> bool:
    """Whether `augment` changes anything with these settings."""
    moves = settings.horizontal_flip, settings.random_resized_crop is not None, settings.crop_padding, settings.rotation
    return any(moves) or bool(settings.color_jitter or settings.trivial_augment)


def augment(images: Tensor, draws: Tensor, settings: Augmentation) -> Tensor:
    """Change a uint8 [N, size, size, 3] batch as its draws [N, len(Draws)] say, on its device."""
    drawn = Draws(*draws.unbind(1))
    signed = torch.where(drawn.sign < 0.5, -drawn.strength, drawn.strength)
    operation = (drawn.operation * len(OPERATIONS)).long()
    chosen = {name: operation == number for number, name in enumerate(OPERATIONS)} if settings.trivial_augment else {}

    images = _crop_and_flip(images, drawn, settings)
    if settings.random_resized_crop is not None or settings.rotation or chosen:
        affine = _affine(drawn, settings, {name: signed * chosen[name] for name in MOVING if chosen})
        every = settings.random_resized_crop is not None or settings.rotation
        moved = None if every else torch.stack([chosen[name] for name in MOVING]).any(0)
        images = _change(images, moved, _warp, *affine)
    if spread := settings.color_jitter:
        factors = (1 + spread * (2 * number - 1) for number in (drawn.brightness, drawn.contrast, drawn.saturation))
        images = _change(images, None, colors.jitter, *factors)
    if chosen:
        for change in colors.BY_FACTOR:
            images = _change(images, chosen[change.__name__], change, 1 + FACTOR * signed)
        for change in colors.BY_STRENGTH:
            images = _change(images, chosen[change.__name__], change, drawn.strength)
    return images


def mixing(settings: Augmentation, num_classes: int) -> nn.Module | None:
    """Mix the images of a batch, float [N, 3, H, W], and their classes, int64 [N] to float [N, classes]; or None.

    mixup (arXiv 1710.09412) adds each image to another one, cutmix (1905.04899) pastes a part of it; with both, each
    batch draws which.
    """
    kinds: list[nn.Module] = []
    if settings.mixup:
        kinds.append(v2.MixUp(alpha=settings.mixup, num_classes=num_classes))
    if settings.cutmix:
        kinds.append(v2.CutMix(alpha=settings.cutmix, num_classes=num_classes))
    return v2.RandomChoice(kinds) if kinds else None


def rescale(images: Tensor, size: int) -> Tensor:
    """Resize a float [N, 3, H, W] batch to size x size on its device; itself if it has that size, or holds features."""
    if images.ndim != 4 or images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _change(images: Tensor, chosen: Tensor | None, change: Callable[..., Tensor], *amounts: Tensor) -> Tensor:
    """The uint8 images, those that are chosen (None: all) changed by a function of float32 [N, 3, H, W] in [0, 255].

    A CPU changes those alone. A GPU changes all and drops some: to learn how many are chosen would be to wait for it.
    """
    if chosen is not None and not must_wait(images.device):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            changed = _change(images.index_select(0, rows), None, change, *(amount[rows] for amount in amounts))
            every = images.unbind()
            torch._foreach_copy_([every[row] for row in rows.tolist()], changed.unbind())
        return images
    planes = images.permute(0, 3, 1, 2).contiguous().float()  # each color by itself: the faster layout on CPUs
    changed = change(planes, *amounts).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return changed if chosen is None else torch.where(chosen[:, None, None, None], changed, images)


def must_wait(device: torch.device) -> bool:
    """Whether to read a value is to wait until the device has done all that it was told."""
    return device.type != "cpu"


def _crop_and_flip(images: Tensor, drawn: Draws, settings: Augmentation) -> Tensor:
    """A copy whose pixels are moved, not changed."""
    count, size = images.shape[:2]
    places = torch.arange(size, device=images.device).expand(count, size)
    rows = columns = places
    if settings.crop_padding:
        most = round(settings.crop_padding * size)
        rows, columns = (
            _mirror(places + (number * (2 * most + 1)).long()[:, None] - most, size)
            for number in (drawn.shift_y, drawn.shift_x)
        )
    if settings.horizontal_flip:
        columns = torch.where((drawn.flip < 0.5)[:, None], columns.flip(1), columns)
    # Rows of all images, then the values of each row: six times as fast on CPUs as to index all of it at once.
    whole = (rows + size * torch.arange(count, device=images.device)[:, None]).flatten()
    lines = images.reshape(count * size, -1).index_select(0, whole).view(count, size, -1)
    values = (3 * columns[:, :, None] + torch.arange(3, device=images.device)).view(count, 1, -1)
    return lines.gather(2, values.expand_as(lines)).view(images.shape)


def _mirror(places: Tensor, size: int) -> Tensor:
    """Places outside of [0, size) mirrored at its ends, which are not repeated."""
    return size - 1 - (size - 1 - places.abs()).abs()


def _affine(drawn: Draws, settings: Augmentation, moves: dict[str, Tensor]) -> list[Tensor]:
    """a, b, c, d, e, f, each [N]: an output pixel at (x, y) comes from (a x + b y + c, d x + e y + f).

    Both run from -1 to 1, edge to edge. `moves` holds how far TrivialAugment's operations go, -1 to 1, where there are.
    """
    zero, one = torch.zeros_like(drawn.angle), torch.ones_like(drawn.angle)
    moves = dict.fromkeys(MOVING, zero) | moves
    width = height = one
    if settings.random_resized_crop is not None:
        # These are logarithms because MKL's square root differs between processors.
        log_area = (settings.random_resized_crop + (1 - settings.random_resized_crop) * drawn.area).log()
        # Neither side may be longer than the image's: a cut one would make the crop smaller than its area.
        log_ratio = (LOG_RATIO * (2 * drawn.ratio - 1)).clamp(log_area, -log_area)
        width, height = ((log_area + log_ratio) / 2).exp(), ((log_area - log_ratio) / 2).exp()
    angle = math.radians(settings.rotation) * (2 * drawn.angle - 1) + ROTATION * moves["rotate"]
    sin, cos = angle.sin(), angle.cos()
    shear_x, shear_y = SHEAR * moves["shear_x"], SHEAR * moves["shear_y"]
    shift_x, shift_y = 2 * TRANSLATION * moves["translate_x"], 2 * TRANSLATION * moves["translate_y"]
    left, top = (1 - width) * (2 * drawn.left - 1), (1 - height) * (2 * drawn.top - 1)
    return [
        width * (cos - sin * shear_y),
        width * (cos * shear_x - sin),
        width * (cos * shift_x - sin * shift_y) + left,
        height * (sin + cos * shear_y),
        height * (sin * shear_x + cos),
        height * (sin * shift_x + cos * shift_y) + top,
    ]


def _warp(pixels: Tensor, *affine: Tensor) -> Tensor:
    """One bilinear interpolation; beyond its edges the image is mirrored."""
    a, b, c, d, e, f = (number[:, None, None] for number in affine)
    size = pixels.shape[2]
    places = (2 * torch.arange(size, device=pixels.device) + 1) / size - 1
    x, y = places[None, None], places[None, :, None]
    grid = torch.stack([torch.addcmul(b * y + c, a, x), torch.addcmul(e * y + f, d, x)], dim=3)
    return F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
