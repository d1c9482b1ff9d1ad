"""What a GPU must do too; left out where there is none."""

import numpy as np
import pytest
import torch

from image_classifier.core import files, runtime
from image_classifier.core.config import Augmentation
from image_classifier.images.shards import ShardReader
from image_classifier.training.augment import augment, draw
from image_classifier.training.distributed import Group
from image_classifier.training.feeding import Feed
from stages import train
from tests.helpers.project import command, read, series
from tests.helpers.training import validations
from tests.training.test_waiting import EVERYTHING

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")
FORMATS = ("fp32", "tf32", "fp16", "bf16")


@pytest.fixture
def on_gpu(change):
    """Train there, with the settings given beside."""

    def chosen(precision: str, **training) -> None:
        change({"training": {"device": DEVICE, "precision": precision, "num_processes": 1} | training})

    return chosen


def outcome(project) -> tuple[str, list[float]]:
    """The checksum of the checkpoint and the losses."""
    return files.sha256("models/checkpoint/model.safetensors"), series(project, "train_loss")


@pytest.mark.parametrize("precision", FORMATS)
def test_two_trainings_are_identical_to_the_byte(project, on_gpu, precision):
    on_gpu(precision, fast_mode=False, augmentation=EVERYTHING, ema_decay=0.9)
    found = []
    for _ in range(2):
        train.main()
        found.append(outcome(project))
    assert found[0] == found[1]


def test_a_killed_training_ends_in_the_same_bytes(project, on_gpu, monkeypatch):
    on_gpu("bf16", fast_mode=False, augmentation=EVERYTHING)
    train.main()
    whole = outcome(project)
    calls = validations(monkeypatch, dies_in=2)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    train.main()
    assert len(calls) == 4 and outcome(project) == whole  # the first epoch was not trained again


def test_number_formats_agree(project, on_gpu):
    accuracies = {}
    for precision in FORMATS:
        on_gpu(precision)
        train.main()
        accuracies[precision] = read(project / "metrics/train/metrics.json")["val_accuracy"]
    images = len(ShardReader("data/shards/val"))
    assert max(accuracies.values()) - min(accuracies.values()) <= 0.05 + 2 / images, accuracies


def test_images_that_do_not_fit_into_memory_give_the_same_batches(project, monkeypatch):
    split, device = ShardReader("data/shards/train"), torch.device(DEVICE)
    order, draws = torch.randperm(len(split)).numpy(), draw(len(split), 0, 0)
    resident = Feed(split, device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 0))
    streamed = Feed(split, device)
    assert resident.resident is not None and streamed.resident is None
    for batches in zip(*(feed.batches(16, order, Group(), draws) for feed in (resident, streamed)), strict=True):
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours.cpu(), theirs.cpu())


def test_images_are_augmented_as_on_a_cpu(project):
    runtime.configure(1)
    split = ShardReader("data/shards/train")
    images, draws, settings = split.gather(np.arange(64)), draw(64, 0, 0), Augmentation(**EVERYTHING)
    expected = augment(images.clone(), draws, settings).float()
    found = augment(images.to(DEVICE), draws.to(DEVICE), settings).cpu().float()
    # An operation may turn one level into many where a value is at its threshold.
    assert ((found - expected).abs() > 1).float().mean() < 0.001


def test_a_model_of_a_gpu_is_evaluated_and_exported_with_and_without_one(project, on_gpu):
    on_gpu("bf16", device="auto")
    train.main()
    for surroundings in ({}, {"CUDA_VISIBLE_DEVICES": ""}):
        for stage in ("evaluate", "export", "report"):
            command(project, "python", "-m", f"stages.{stage}", **surroundings)
        assert read(project / "metrics/export/metrics.json")["onnx_agreement"] == 1.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_share_each_batch(project, on_gpu):
    on_gpu("fp32", num_processes=2)
    told = command(project, "python", "-m", "stages.train").stdout
    losses = series(project, "train_loss")
    assert "train: 2 processes share each batch on 2 of" in told and losses[-1] < losses[0]
