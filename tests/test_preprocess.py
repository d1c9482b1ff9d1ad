import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, MobileViTImageProcessor

from image_classifier import preprocess
from image_classifier.config import Augmentation
from image_classifier.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalize, Resize


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode, form):
    """An orange of every mode that the format has; in the grey modes its brightness, in black and white a white."""
    orange = Image.new("RGB", (16, 16), (255, 255, 255) if mode == "1" else (240, 130, 20))
    try:
        data = encoded(orange.convert(mode), form)
    except OSError:
        pytest.skip(f"{form} has no {mode}")
    decoded = preprocess.decode(data)
    grey = round(0.299 * 240 + 0.587 * 130 + 0.114 * 20)  # ITU-R 601, as Pillow converts
    expected = {"1": [255] * 3, "L": [grey] * 3, "LA": [grey] * 3}.get(mode, [240, 130, 20])
    near = {"P": 25}.get(mode, 4)  # a palette of 216 colours; lossy formats round
    assert decoded.mode == "RGB"
    assert np.abs(np.asarray(decoded).astype(int).mean(axis=(0, 1)) - expected).max() <= near


def test_postscript_is_not_opened():
    """Pillow would hand it to Ghostscript, where there is one: a program in a picture."""
    with pytest.raises(preprocess.UnreadableImage, match="not a picture in one of the formats"):
        preprocess.decode(encoded(noise(8, 8), "EPS"))


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    little = Image.fromarray(values)
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    pgm = b"P5 3 1 65535\n" + values.astype(">u2").tobytes()
    for data in (encoded(little), encoded(little, "TIFF"), encoded(big, "TIFF"), pgm):
        assert np.asarray(preprocess.decode(data))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("image", [Image.new("I", (3, 2), 200), Image.new("F", (3, 2), 0.5)])
def test_32_bit_grey_of_unknown_range_is_refused(image):
    with pytest.raises(preprocess.UnreadableImage, match="32 bits, of unknown range"):
        preprocess.decode(encoded(image, "TIFF"))


def test_a_picture_of_a_line_is_refused():
    """Its shorter side scaled to 160 px, it would take 300 GB: a crop bomb of eight kilobytes."""
    with pytest.raises(preprocess.UnreadableImage, match="1 x 4000000 pixels: too narrow"):
        preprocess.decode(encoded(Image.new("1", (1, 4_000_000))))


@pytest.mark.parametrize(("tag", "turn"), [(3, 2), (6, 3), (8, 1)])  # EXIF 2.3, 4.6.4 A: how the camera was held
def test_exif_orientation_is_applied(tag, turn):
    exif, image = Image.Exif(), noise(4, 2)
    exif[0x0112] = tag
    decoded = preprocess.decode(encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(decoded), np.rot90(np.asarray(image), turn))


@pytest.mark.parametrize("data", [b"", b"not a picture", encoded(noise(50, 50))[:500]])
def test_what_is_no_picture_is_unreadable(data):
    with pytest.raises(preprocess.UnreadableImage):
        preprocess.decode(data)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (400, 300), (161, 160)])
def test_resize_is_pillows_bilinear_to_one_level(size):
    image = noise(*size)
    expected = np.asarray(image.resize((160, 160), Image.BILINEAR)).astype(int)
    resized = Resize(160, "stretch")(image).numpy()
    assert np.abs(resized - expected).max() <= 1


NORMALIZATIONS = {
    "imagenet": Normalize(IMAGENET_MEAN, IMAGENET_STD),
    "none": Normalize(),
    "mobilevit": Normalize(to_bgr=True),
}


@pytest.mark.parametrize("normalize", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(90, 50), (50, 91), (64, 64), (33, 200)])
def test_the_saved_processor_makes_the_same_pixels(normalize, mode, size, tmp_path):
    image, resize = noise(*size), Resize(64, mode)
    saved = preprocess.processor(normalize, resize)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(resize(image)[None]), theirs, rtol=0, atol=1e-6)
    back = preprocess.normalization_of(saved)
    assert (back.mean, back.std, back.to_bgr) == (normalize.mean, normalize.std, normalize.to_bgr)


def test_mobilevits_own_processor_is_followed():
    theirs = MobileViTImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, resample=2)
    normalize, image = preprocess.normalization_of(theirs.to_dict()), noise(64, 64)
    assert normalize.to_bgr
    ours = normalize(Resize(64, "stretch")(image)[None])
    torch.testing.assert_close(ours, theirs(image, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(ours[0, 0], torch.from_numpy(np.asarray(image)[:, :, 2].copy()) * normalize.scale[0])


@pytest.mark.parametrize(
    "config",
    [
        {"do_rescale": False},
        {"do_rescale": True, "rescale_factor": 1 / 127.5},
        {"do_rescale": True, "do_flip_channel_order": True, "do_normalize": True},
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(config):
    with pytest.raises(ValueError):
        preprocess.normalization_of(config)


def test_normalize_leaves_channels_last():
    out = Normalize(IMAGENET_MEAN, IMAGENET_STD)(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert out.is_contiguous(memory_format=torch.channels_last)


def augmentation(**changes):
    none = {"horizontal_flip": False, "crop_padding": 0, "rotation": 0, "color_jitter": 0, "trivial_augment": False}
    return preprocess.augmentation(Augmentation(**none | changes), 32)


def test_no_augmentation_is_none():
    assert augmentation() is None


@pytest.mark.parametrize(
    "changes",
    [
        {"horizontal_flip": True},
        {"crop_padding": 0.125},
        {"rotation": 15},
        {"color_jitter": 0.4},
        {"trivial_augment": True},
    ],
    ids=str,
)
def test_augmentation_follows_from_the_seed_and_differs_by_picture(changes):
    pictures = torch.from_numpy(np.asarray(noise(32, 32)).copy()).expand(32, -1, -1, -1)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(preprocess.augment(pictures, augmentation(**changes)))
    first, again, other = results
    assert first.dtype == torch.uint8 and first.shape == pictures.shape
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({picture.numpy().tobytes() for picture in first}) > 1


def test_flips_are_flips_of_half_of_the_pictures():
    pictures = torch.from_numpy(np.asarray(noise(32, 32)).copy()).expand(64, -1, -1, -1)
    torch.manual_seed(0)
    flipped = preprocess.augment(pictures, augmentation(horizontal_flip=True))
    turned = [torch.equal(new, old.flip(1)) for new, old in zip(flipped, pictures, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, pictures, strict=True)]
    assert sum(turned) + sum(kept) == 64 and 16 < sum(turned) < 48
