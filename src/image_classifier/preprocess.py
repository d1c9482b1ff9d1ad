"""The one place for pixels: decode, resize, normalise, augment.

Prepare decodes and resizes; train, evaluate, the ONNX graph and predict normalise with the same
module; `processor` describes both steps to Hugging Face's image processors, which then make the
same pixels.
"""

import hashlib
import io
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

# Channel means and standard deviations of ImageNet in [0, 1], RGB, as torchvision documents them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BILINEAR = 2  # PIL's number, as a processor's `resample` wants it


class UnreadableImage(Exception):
    """These bytes are not a picture that can be decoded; the message says why."""


def decode(data: bytes) -> Image.Image:
    """Decode a picture file's bytes to RGB, turned upright as its EXIF tag says.

    Raises:
        UnreadableImage: not a picture, truncated, or too large to be one (a decompression bomb).
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if image.mode.startswith("I;16") or image.mode == "I":
            # 16-bit grey: convert("RGB") would clip to 255 instead of scaling.
            image = image.point(lambda value: value / 257).convert("L")
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise UnreadableImage("not a picture that Pillow knows") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(str(error)) from None


def resize(image: Image.Image, size: int) -> Tensor:
    """Resize to size x size, bilinear with antialias.

    Torch's uint8 kernel: what Hugging Face's processors use, three times as fast as Pillow's and
    within one level of 255 of it.

    Returns:
        uint8 [size, size, 3]: height, width, RGB.
    """
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous()


def digest(image: Image.Image) -> bytes:
    """SHA-256 of a decoded picture's size and pixels: equal pictures, whatever their files."""
    return hashlib.sha256(b"%dx%d" % image.size + image.tobytes()).digest()


def description(image_size: int) -> dict[str, Any]:
    """What `decode` and `resize` do, for the index of the shards."""
    return {"image_size": image_size, "mode": "RGB", "resize": "bilinear, antialias, stretched to a square"}


class Normalize(nn.Module):
    """uint8 [N, H, W, 3] RGB -> float32 [N, 3, H, W], (pixel / 255 - mean) / std.

    The output has torch's channels_last layout, which is how the input lies in memory: no copy.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        scale = torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.permute(0, 3, 1, 2).float(), self.scale)


def normalization(name: str) -> Normalize:
    """The `data.normalization` setting as a module."""
    if name == "imagenet":
        return Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def processor(normalize: Normalize, image_size: int) -> dict[str, Any]:
    """`preprocessor_config.json` of a generic image processor that makes the pixels the model saw.

    MobileViT's own processor cannot subtract a mean, ViT's can and does nothing else of its own.
    """
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalize.mean),
        "image_std": list(normalize.std),
        "do_convert_rgb": True,
    }


def from_processor(config: dict[str, Any]) -> tuple[Normalize, int]:
    """The inverse of `processor`: the normalisation and the image size of a checkpoint folder."""
    return Normalize(config["image_mean"], config["image_std"]), config["size"]["height"]


def augment(images: Tensor, seed: int) -> Tensor:
    """Flip each picture of a float [N, 3, H, W] batch left to right with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def rescale(images: Tensor, size: int) -> Tensor:
    """Resize a float [N, 3, H, W] batch to size x size on its device; itself if it has that size."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)
