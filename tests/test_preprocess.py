import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from image_classifier import preprocess


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    decoded = preprocess.decode(encoded(image, "TIFF"))
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).min() >= 254


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    decoded = preprocess.decode(encoded(Image.fromarray(values)))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 100, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert preprocess.decode(encoded(noise(4, 2), "JPEG", exif=exif)).size == (2, 4)


@pytest.mark.parametrize("data", [b"", b"not a picture", encoded(noise(50, 50))[:500]])
def test_what_is_no_picture_is_unreadable(data):
    with pytest.raises(preprocess.UnreadableImage):
        preprocess.decode(data)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (400, 300), (161, 160)])
def test_resize_is_pillows_bilinear_to_one_level(size):
    image = noise(*size)
    expected = np.asarray(image.resize((160, 160), Image.BILINEAR)).astype(int)
    resized = preprocess.resize(image, 160).numpy()
    assert np.abs(resized - expected).max() <= 1


@pytest.mark.parametrize("name", ["imagenet", "none"])
def test_the_saved_processor_makes_the_same_pixels(name):
    image, normalize = noise(90, 50), preprocess.normalization(name)
    ours = normalize(preprocess.resize(image, 64)[None])
    theirs = ViTImageProcessor(**preprocess.processor(normalize, 64))(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_normalize_leaves_channels_last():
    out = preprocess.normalization("imagenet")(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_augment_is_a_function_of_the_seed():
    images = torch.rand(64, 3, 8, 8)
    first, again, other = (preprocess.augment(images, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    flipped = [not torch.equal(a, b) for a, b in zip(images, first, strict=True)]
    assert 10 < sum(flipped) < 54
    assert all(torch.equal(b, a.flip(2)) for a, b, f in zip(images, first, flipped, strict=True) if f)
