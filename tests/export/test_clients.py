"""The exported model in programs that no one here wrote."""

import re
import sys

import mlflow
import numpy as np
import pytest
from PIL import Image, ImageOps

from benchmarks.clients import answers
from image_classifier.export import formats
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.preparation import decode
from tests.helpers.project import ROOT, command


@pytest.fixture
def images(trained) -> np.ndarray:
    """Test images, uint8 [20, 64, 64, 3]."""
    return ShardReader(trained / "data/shards/test").gather(np.arange(20)).numpy()


@pytest.fixture
def ours(trained, images) -> np.ndarray:
    """Their probabilities, float32 [20, 10]."""
    return formats.session(trained / "models/export/model.onnx").run(None, {"image": images})[0]


def test_the_readmes_lines_need_neither_this_project_nor_torch(trained, tmp_path, images, ours):
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)]
    (tmp_path / "models").symlink_to(trained / "models")
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    absent = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'transformers', 'image_classifier']))\n"
    )
    name, probability = command(tmp_path, sys.executable, "-c", absent + lines).stdout.split()
    assert name == str(ours[0].argmax()) and float(probability) == pytest.approx(ours[0].max(), abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 333)])
def test_the_lines_for_crops_prepare_an_image_as_prepare_does(tmp_path, width, height):
    page = (ROOT / "docs/formats-and-models.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, re.S)
    slopes = np.add.outer(np.arange(height), np.arange(width)) % 256
    pixels = np.stack([slopes, slopes[::-1], slopes[:, ::-1]], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    found: dict = {"size": 64, "Image": Image, "ImageOps": ImageOps}
    exec(lines.replace("image.png", str(tmp_path / "image.png")), found)
    prepared = Resize(64, "crop")(decode.decode((tmp_path / "image.png").read_bytes()))
    np.testing.assert_allclose(np.asarray(found["image"]).astype(int), prepared.numpy(), atol=1)


def test_mlflow_loads_the_model_by_its_alias(trained, images, ours):
    mlflow.set_tracking_uri(f"sqlite:///{trained / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/image-classifier@champion")
    np.testing.assert_allclose(model.predict({"image": images})["probabilities"], ours, rtol=1e-5)


@pytest.mark.full
def test_mlflow_serves_the_model_over_http(trained, images, ours, monkeypatch):
    monkeypatch.chdir(trained)
    (found,) = answers([images[:2]], f"sqlite:///{trained / 'mlflow.db'}")
    np.testing.assert_allclose(found, ours[:2], rtol=1e-4)
