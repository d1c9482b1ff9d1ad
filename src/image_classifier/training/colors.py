"""Changes of color of float32 images [N, 3, H, W] in [0, 255], each by its own amount [N]. May change the input."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

GRAY = (0.299, 0.587, 0.114)  # of red, green and blue: luma, ITU-R BT.601
BITS = 6  # of eight, dropped at full strength


def jitter(pixels: Tensor, *factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation, each by a factor of its own."""
    for change, factor in zip((brightness, contrast, saturation), factors, strict=True):
        pixels = change(pixels, factor)
    return pixels


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Times a factor."""
    return pixels.mul_(factor[:, None, None, None]).clamp_(0, 255)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of the image's gray, or towards it."""
    # In float64, or the last digits would depend on how many images are in the batch.
    mean = _gray(pixels).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend(mean.float(), pixels, factor)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from gray, or towards it."""
    return _blend(_gray(pixels), pixels, factor)


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Against the image smoothed by PIL's SMOOTH filter, which leaves the edges alone."""
    size, smooth = pixels.shape[2] - 2, pixels.clone()
    inner = smooth[..., 1:-1, 1:-1]
    inner *= 4
    for row, column in itertools.product(range(3), repeat=2):
        inner += pixels[..., row : row + size, column : column + size]
    inner /= 13
    return _blend(smooth, pixels, factor)


def posterize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Drop up to six of the eight bits of each value."""
    step = (BITS * strength).round().exp2()[:, None, None, None]
    return (pixels / step).floor() * step


def solarize(pixels: Tensor, strength: Tensor) -> Tensor:
    """Invert what is brighter than a threshold: at strength 0 nothing, at 1 all."""
    return torch.where(pixels >= 256 * (1 - strength)[:, None, None, None], 255 - pixels, pixels)


def autocontrast(pixels: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    least, most = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    return torch.where(most > least, (pixels - least) * (255 / (most - least)), pixels)


def equalize(pixels: Tensor, _: Tensor) -> Tensor:
    """Give each channel a flat histogram."""
    warns, is_on = torch.is_deterministic_algorithms_warn_only_enabled(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)  # counts are the same in any order; on a GPU it would sort all pixels
    equalized = v2.functional.equalize(pixels.to(torch.uint8)).float()
    torch.use_deterministic_algorithms(is_on, warn_only=warns)
    return equalized


def _blend(other: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """`other` at a factor of 0, the pixels at 1, beyond them above."""
    return torch.lerp(other, pixels, factor[:, None, None, None]).clamp_(0, 255)


def _gray(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue


BY_FACTOR: tuple[Callable, ...] = (brightness, saturation, contrast, sharpness)  # 1 changes nothing
BY_STRENGTH: tuple[Callable, ...] = (posterize, solarize, autocontrast, equalize)  # from 0 to 1
