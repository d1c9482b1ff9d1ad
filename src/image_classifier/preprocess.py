"""The one place for pixels: resize, normalize, augment.

Prepare decodes and resizes; train, evaluate, the ONNX graph and predict normalize with the same
module; `processor` describes both steps to Hugging Face's image processors, which then make the
same pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from image_classifier.config import Augmentation

# Channel means and standard deviations of ImageNet in [0, 1], RGB, as torchvision documents them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Resize:
    """Any image file to RGB of size x size, bilinear with antialias, by torch's uint8 kernel.

    That kernel is what Hugging Face's processors use; it is within one level of 255 of Pillow's.
    """

    size: int  # pixels
    mode: str  # "stretch", or "crop": the shorter side to size, then the middle
    background: str = "white"  # what shows where an image is transparent

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [size, size, 3]: height, width, RGB."""
        return self.many([image])[0]

    def many(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures of one size, in one pass: uint8 [N, size, size, 3]."""
        width, height = images[0].size
        pixels = torch.frombuffer(bytearray().join(image.tobytes() for image in images), dtype=torch.uint8)
        pixels = pixels.view(len(images), height, width, 3).permute(0, 3, 1, 2)
        sides = (height, width) if self.mode == "crop" else (1, 1)
        pixels = F.interpolate(
            pixels, [self.size * side // min(sides) for side in sides], mode="bilinear", antialias=True
        )
        top, left = (pixels.shape[2] - self.size) // 2, (pixels.shape[3] - self.size) // 2
        middle = pixels[:, :, top : top + self.size, left : left + self.size]
        return middle.permute(0, 2, 3, 1).contiguous()


class Normalize(nn.Module):
    """uint8 [N, H, W, 3] RGB -> float32 [N, 3, H, W], (pixel / 255 - mean) / std.

    The output has torch's channels_last layout, which is how the input lies in memory: no copy.
    """

    def __init__(self, mean: Sequence[float] = (0, 0, 0), std: Sequence[float] = (1, 1, 1), to_bgr: bool = False):
        super().__init__()
        self.mean, self.std, self.to_bgr = tuple(mean), tuple(std), to_bgr
        scale = torch.tensor([1 / (255 * s) for s in std])
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.to_bgr:
            images = images.flip(3)
        width = images.shape[2]
        # A whole row at a time, 2.5 times as fast on CPUs as three channels at a time.
        rows = torch.addcmul(self.shift.repeat(width), images.flatten(2).float(), self.scale.repeat(width))
        return rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


def processor(normalize: Normalize, resize: Resize) -> dict[str, Any]:
    """`preprocessor_config.json` of a Hugging Face image processor that makes the pixels the model saw.

    Of upright RGB pictures, which is what transformers' own pipeline hands to it.

    MobileViT's own processor is the one that swaps red and blue, but it cannot subtract a mean;
    ViT's can and does nothing else of its own.
    """
    square = {"height": resize.size, "width": resize.size}
    config: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if resize.mode == "stretch" else {"shortest_edge": resize.size},
        "resample": 2,  # PIL's number for bilinear
        "do_center_crop": resize.mode == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "background": resize.background,  # which transformers leaves alone
    }
    if normalize.to_bgr:
        return {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True, **config}
    mean_and_std = {"do_normalize": True, "image_mean": list(normalize.mean), "image_std": list(normalize.std)}
    return {"image_processor_type": "ViTImageProcessor", **mean_and_std, **config}


def normalization_of(config: dict[str, Any]) -> Normalize:
    """What a Hugging Face image processor does to channels and values.

    Raises ValueError: it does something that cannot be done here.
    """
    to_bgr, normalizes = bool(config.get("do_flip_channel_order")), bool(config.get("do_normalize"))
    if not config.get("do_rescale") or not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-4):
        raise ValueError("its pixels are not in [0, 1]")
    if config.get("include_top") or config.get("rescale_offset"):  # EfficientNet's
        raise ValueError("it divides by the deviation twice, or shifts the pixels")
    if to_bgr and normalizes:
        raise ValueError("it swaps red and blue and subtracts a mean too")
    return Normalize(config["image_mean"], config["image_std"]) if normalizes else Normalize(to_bgr=to_bgr)


def augmentation(settings: Augmentation, size: int) -> nn.Module | None:
    """Random changes of one uint8 [3, size, size] picture; None if none is asked for.

    They draw from torch's global generator, which the trainer seeds before every step.
    """
    steps: list[nn.Module] = []
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


def augment(images: Tensor, change: nn.Module) -> Tensor:
    """Apply `change` to each picture of a uint8 [N, H, W, 3] batch by itself, on the batch's device."""
    pictures = images.permute(0, 3, 1, 2)
    return torch.stack([change(picture) for picture in pictures]).permute(0, 2, 3, 1)


def rescale(images: Tensor, size: int) -> Tensor:
    """Resize a float [N, 3, H, W] batch to size x size on its device; itself if it has that size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
