"""Random changes of training images, and their size on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from image_classifier.core.config import Augmentation


def augmentation(settings: Augmentation, size: int) -> nn.Module | None:
    """Random changes of one uint8 [3, size, size] image; None if none is asked for.

    They draw from torch's global generator, which the trainer seeds before every step.
    """
    steps: list[nn.Module] = []
    if settings.random_resized_crop is not None:
        steps.append(v2.RandomResizedCrop(size, scale=(settings.random_resized_crop, 1.0), antialias=True))
    if settings.crop_padding:
        steps.append(v2.RandomCrop(size, padding=round(settings.crop_padding * size), padding_mode="reflect"))
    if settings.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    if settings.rotation:
        steps.append(v2.RandomRotation(settings.rotation, interpolation=v2.InterpolationMode.BILINEAR))
    if settings.color_jitter:
        steps.append(v2.ColorJitter(*[settings.color_jitter] * 3))
    if settings.trivial_augment:
        steps.append(v2.TrivialAugmentWide())
    return v2.Compose(steps) if steps else None


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


def augment(images: Tensor, change: nn.Module) -> Tensor:
    """Apply `change` to each image of a uint8 [N, H, W, 3] batch by itself, on the batch's device."""
    channels_first = images.permute(0, 3, 1, 2)
    return torch.stack([change(image) for image in channels_first]).permute(0, 2, 3, 1)


def rescale(images: Tensor, size: int) -> Tensor:
    """Resize a float [N, 3, H, W] batch to size x size on its device; itself if it has that size, or holds features."""
    if images.ndim != 4 or images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
