"""The Hugging Face hub's real clients against a server on 127.0.0.1, with both repositories in their real layout."""

import io
import json
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from transformers import MobileViTConfig, MobileViTForImageClassification

from image_classifier.commands.recipe import RECIPES
from image_classifier.core import files
from tests.helpers.hub_server import Repository, serving
from tests.helpers.project import NO_NETWORK, command, edit_params, new_project

pytestmark = pytest.mark.pipeline  # stages run, which takes longer than `make check` may
RECIPE = YAML(typ="safe").load(RECIPES / "cifar10.yaml")
DATASET, MODEL = ("datasets", RECIPE["data"]["source"]), ("models", RECIPE["model"]["name"])
NAMES = ["airplane", "automobile"]
CARD = """---
dataset_info:
  config_name: plain_text
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': airplane
          '1': automobile
  splits:
  - name: train
    num_examples: 120
  - name: test
    num_examples: 40
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
  default: true
---
"""
# The real one, which names neither do_rescale nor the processor's class as transformers calls it today.
PREPROCESSOR = {"crop_size": 256, "do_center_crop": True, "do_flip_channels": True, "do_resize": True}
PREPROCESSOR |= {"feature_extractor_type": "MobileViTFeatureExtractor", "resample": 2, "size": 288}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> dict[tuple[str, str], Repository]:
    """uoft-cs/cifar10 with 160 images of noise, and apple/mobilevit-small as a tiny network with 1,000 classes."""
    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    files = {"README.md": CARD.encode()}
    for seed, (split, count) in enumerate((("train", 120), ("test", 40))):
        images = []
        for pixels in np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
            images.append({"bytes": content.getvalue(), "path": None})
        table = datasets.Dataset.from_dict({"img": images, "label": [n % 2 for n in range(count)]}, features=features)
        table.to_parquet(folder / split)
        files[f"plain_text/{split}-00000-of-00001.parquet"] = (folder / split).read_bytes()
    tiny = MobileViTConfig(
        image_size=256,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        expand_ratio=2.0,
        num_labels=1000,
    )
    tiny.architectures = ["MobileViTForImageClassification"]
    torch.manual_seed(0)
    torch.save(MobileViTForImageClassification(tiny).state_dict(), weights := io.BytesIO())
    model = {
        "pytorch_model.bin": weights.getvalue(),
        "config.json": tiny.to_json_string().encode(),
        "preprocessor_config.json": json.dumps(PREPROCESSOR).encode(),
        "README.md": b"---\nlicense: other\n---\n",
    }
    return {
        DATASET: Repository(RECIPE["data"]["revision"], files),
        MODEL: Repository(RECIPE["model"]["revision"], model),
        ("datasets", "acme/gated"): Repository("d" * 40, files, gated=True),
        ("models", "acme/gated"): Repository("d" * 40, model, gated=True),
    }


def surroundings(address: str, cache) -> dict[str, str]:
    return {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def test_the_published_recipe_runs_from_the_hub_to_a_checkpoint_and_then_without_it(repositories, tmp_path):
    project = new_project(tmp_path / "project")
    command(project, "image-classifier", "recipe", "cifar10")
    edit_params(project, {"data": {"image_size": 64, "subset_size": 80, "normalization": "checkpoint"}})
    edit_params(project, {"training": {"num_epochs": 1, "batch_size": 8, "precision": "fp32"}, "num_threads": 1})
    with serving(repositories) as hub:
        command(project, "dvc", "repro", "train", **surroundings(hub.address, tmp_path / "cache"))
        asked = len(hub.requests)
    assert asked > 4
    index = json.loads((project / "data/shards/test/index.json").read_text())
    assert index["count"] == 20 and index["class_names"] == NAMES
    processing = json.loads((project / "models/checkpoint/preprocessor_config.json").read_text())
    assert processing["do_flip_channel_order"]  # as that checkpoint was trained
    weights = files.sha256(project / "models/checkpoint/model.safetensors")
    # The server is gone: the pinned commits are in the cache.
    offline = surroundings("http://127.0.0.1:9", tmp_path / "cache") | {"HF_HUB_OFFLINE": "1"}
    command(project, "dvc", "repro", "--force", "train", **offline)
    assert files.sha256(project / "models/checkpoint/model.safetensors") == weights


TRIES = """
import sys
from pathlib import Path
from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.preparation import sources
from image_classifier.training.build import build_network
params = config.load()
data, model = params.data, params.model.model_copy(update={"pretrained": True})
for source, revision in (("%(dataset)s", "f" * 40), ("acme/nothing", "f" * 40), ("acme/gated", "d" * 40)):
    try:
        sources.load(data.model_copy(update={"source": source, "revision": revision}), Path("scratch"))
    except UserError as error:
        print("TOLD", error)
for name, revision in (("%(model)s", "f" * 40), ("acme/nothing", "f" * 40), ("acme/gated", "d" * 40)):
    try:
        build_network(model.model_copy(update={"name": name, "revision": revision}), ["a", "b"], 64, 0)
    except UserError as error:
        print("TOLD", error)
"""


def test_what_the_hub_does_not_give_is_one_line_each_with_what_to_do(repositories, tmp_path):
    project = new_project(tmp_path / "project")
    code = TRIES % {"dataset": DATASET[1], "model": MODEL[1]}
    with serving(repositories) as hub:
        around = surroundings(hub.address, tmp_path / "cache") | {"PYTHONPATH": "src"}
        done = command(project, sys.executable, "-c", code, **around)
    told = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert len(told) == 6, done.stdout
    for lines, key, name in ((told[:3], "data", "data.source"), (told[3:], "model", "model.name")):
        assert lines[0].endswith(f"the hub has no such commit of it: check {key}.revision"), lines[0]
        assert lines[1].endswith(f"knows no such repository, or it is private: check {name}, or set HF_TOKEN"), lines[1]
        assert lines[2].endswith("and set HF_TOKEN to a token of that account"), lines[2]


def test_a_hub_that_cannot_be_reached_says_how_to_fetch_elsewhere(tmp_path):
    project = new_project(tmp_path / "project")
    edit_params(project, {"model": {"name": MODEL[1], "revision": "f" * 40, "pretrained": True}})
    code = (
        "from image_classifier.core import config; from image_classifier.training.build import build_network; "
        "build_network(config.load().model, ['a', 'b'], 64, 0)"
    )
    around = surroundings("http://127.0.0.1:9", tmp_path / "cache")
    around |= {"PYTHONPATH": f"{project / 'src'}:{NO_NETWORK}", "NETWORK_LOG": str(tmp_path / "log")}
    around["NO_WAITING"] = "1"  # between a client's tries
    done = command(project, sys.executable, "-c", code, ok=False, **around)
    assert (
        f"`hf download {MODEL[1]} --revision {'f' * 40} --local-dir models/pretrained/mobilevit-small`" in done.stderr
    )
