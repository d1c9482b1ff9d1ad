"""Pretrained weights that come as a package."""

import json
import shutil
from importlib.metadata import distribution

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from image_classifier.commands import recipe, weights
from image_classifier.core import config, files
from image_classifier.core.errors import UserError
from image_classifier.training.build import build_network, input_normalization
from tests.helpers.architectures import settings
from tests.helpers.project import DEFAULTS, ROOT

# Of each stage of EfficientNet-Lite0, table 1 of arXiv 1905.11946: blocks, kernel, stride, expansion.
STAGES = [(1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6)]


def plain_logits(given: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """What EfficientNet-Lite0 computes, written out from the paper, with the weights under the package's names."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, activate: bool = True) -> Tensor:
        kernel = given[f"{conv}.weight"]
        size, side = kernel.shape[-1], x.shape[-1]
        # TensorFlow's padding: what is missing, the odd pixel at the end.
        missing = max((-(-side // stride) - 1) * stride + size - side, 0)
        x = F.pad(x, [missing // 2, missing - missing // 2] * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)
        mean, var = given[f"{norm}.running_mean"], given[f"{norm}.running_var"]
        x = F.batch_norm(x, mean, var, given[f"{norm}.weight"], given[f"{norm}.bias"], eps=1e-3)
        return F.relu6(x) if activate else x

    x, number = layer(pixels, "_conv_stem", "_bn0", stride=2), 0
    for count, _, stride, expansion in STAGES:
        for place in range(count):
            name, start = f"_blocks.{number}", x
            if expansion > 1:
                x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
            x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride if place == 0 else 1)
            x = layer(x, f"{name}._project_conv", f"{name}._bn2", activate=False)
            x, number = x + start if place else x, number + 1
    x = layer(x, "_conv_head", "_bn1").mean(dim=(2, 3))
    return F.linear(x, given["_fc.weight"], given["_fc.bias"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """models/pretrained/efficientnet-lite0 in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("weights"))
        assert weights.main("efficientnet-lite0") == 0
        yield weights.FOLDER.absolute() / "efficientnet-lite0"


@torch.inference_mode()
def test_the_network_computes_what_the_paper_says_with_the_packages_weights(folder):
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    path = distribution(weights.PACKAGE).locate_file(weights.FILE)
    given = torch.load(str(path), weights_only=True)
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    logits = network(pixel_values=pixels).logits
    torch.testing.assert_close(logits, plain_logits(given, pixels), rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.5 and network.config.id2label[207] == "golden retriever"


def test_the_folder_says_what_it_is(folder):
    normalize = input_normalization("checkpoint", settings(folder, pretrained=True))
    assert normalize.mean == normalize.std == (0.5, 0.5, 0.5)
    assert AutoImageProcessor.from_pretrained(folder).size["shortest_edge"] == 256
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    text = (folder / "LICENSE").read_text()
    assert "ML Illustrated" in text and "TERMS AND CONDITIONS FOR USE" in text and "9. Accepting Warranty" in text
    files.check_seal(folder, "")


def test_it_becomes_a_classifier_of_other_classes(folder):
    network = build_network(settings(folder, pretrained=True), ["cat", "dog"], 64, seed=0)
    assert network(pixel_values=torch.zeros(2, 3, 64, 64)).logits.shape == (2, 2)
    assert json.loads(network.config.to_json_string(use_diff=False))["label_names"] == ["cat", "dog"]


def test_a_recipe_writes_the_weights_that_it_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    shutil.copy(DEFAULTS, ".")
    for _ in range(2):  # the second time they are there
        recipe.main("finetune")
    assert capsys.readouterr().out.count("models/pretrained/efficientnet-lite0 written") == 1
    build_network(config.load().model, ["cat", "dog"], 64, seed=0)


def test_unknown_weights_are_one_line():
    with pytest.raises(UserError, match="there are no weights called resnet: choose one of efficientnet-lite0$"):
        weights.write("resnet")
