import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, MobileViTImageProcessor

from image_classifier.images.resize import Resize
from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, image_processor, normalization_of
from tests.helpers.images import noise


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
    saved = image_processor(normalize, resize)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(resize(image)[None]), theirs, rtol=0, atol=1e-6)
    back = normalization_of(saved)
    assert (back.mean, back.std, back.to_bgr) == (normalize.mean, normalize.std, normalize.to_bgr)


def test_mobilevits_own_processor_is_followed():
    theirs = MobileViTImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, resample=2)
    normalize, image = normalization_of(theirs.to_dict()), noise(64, 64)
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
        normalization_of(config)


def test_normalize_leaves_channels_last():
    out = Normalize(IMAGENET_MEAN, IMAGENET_STD)(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    assert out.is_contiguous(memory_format=torch.channels_last)
