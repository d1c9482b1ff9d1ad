"""Several processes train what one process trains."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from image_classifier.core import config, files
from image_classifier.core.errors import UserError
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint, numerics
from image_classifier.model.batches import deal, shuffled
from image_classifier.training import resume
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.distributed import Group
from image_classifier.training.trainer import Trainer
from stages import train
from tests.helpers.project import HANGS, command, read, series, wait_for

# Without batch norm, and without dropout: nothing in it depends on how a batch is dealt out.
VIT = """{
  "model_type": "vit", "image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2,
  "num_attention_heads": 2, "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0
}"""
STEADY = {"resolution_schedule": None, "learning_rate": 0.003, "batch_size": 15}  # 15 does not share out evenly


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}  # as in /proc/net/tcp


def listening(pid: int) -> set[str]:
    """The addresses on which a process and its children wait for connections."""
    found = set()
    with suppress(OSError):  # one of them has ended
        for one in [pid, *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]:
            open_files = {os.readlink(path) for path in Path(f"/proc/{one}/fd").iterdir()}
            for table in ("tcp", "tcp6"):
                for line in Path(f"/proc/{one}/net/{table}").read_text().splitlines()[1:]:
                    _, local, _, state, *_, inode = line.split()[:10]
                    if state == "0A" and f"socket:[{inode}]" in open_files:
                        found.add(local.split(":")[0])
    return found


@pytest.mark.parametrize(("count", "batch_size", "ranks"), [(200, 16, 2), (201, 15, 2), (37, 8, 3)])
def test_every_image_is_dealt_to_one_process_in_the_batch_that_one_process_has(count, batch_size, ranks):
    order = shuffled(count, seed=0, epoch=1)
    whole = deal(order, batch_size)
    parts = [deal(order, batch_size, rank, ranks) for rank in range(ranks)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_give_the_losses_of_one(project, change):
    (project / "tiny-model/config.json").write_text(VIT)
    change({"num_threads": None, "training": STEADY})
    train.main()
    names = ["train_loss", "train_accuracy", "train_f1_score", "val_loss", "val_accuracy", "learning_rate"]
    alone = {name: series(project, name) for name in names}
    shutil.rmtree("models/checkpoint")
    change({"training": {"num_processes": 2}})
    launcher = subprocess.Popen([sys.executable, "-m", "stages.train"], stdout=subprocess.PIPE, text=True)
    heard = set()
    while launcher.poll() is None:
        heard |= listening(launcher.pid)
        time.sleep(0.05)
    output = launcher.stdout.read()
    assert launcher.returncode == 0, output
    assert output.count("train: epoch 3/3") == 1 and "2 processes share each batch" in output
    assert heard and heard <= LOOPBACK  # the processes hear each other, and no other machine
    for name in names:  # sums in another order; an image counted twice would move the accuracies by 0.005
        np.testing.assert_allclose(series(project, name), alone[name], rtol=2e-3, err_msg=name)
    assert read(project / "metrics/train/metrics.json")["best_epoch"] == int(np.argmax(alone["val_accuracy"]))
    checkpoint.load("models/checkpoint")
    assert not list(Path(".resume").glob("*/epoch-*"))


def test_what_the_processes_must_have_in_common(monkeypatch):
    group = Group(index=1, count=2)
    monkeypatch.setattr(Group, "send", lambda *_: b"seed 0")
    group.agree("seed 0")
    with pytest.raises(UserError, match="process 1 has other params, shards, weights or precision than the first one"):
        group.agree("seed 1")


def trainer(group: Group, batch_size: int = 16) -> Trainer:
    """Of the project's train split, from which it also takes val."""
    params, reader = config.load(), ShardReader("data/shards/train")
    network = build_network(params.model, reader.class_names, 64, 0)
    normalize, chosen = input_normalization("imagenet", params.model), numerics.resolve("cpu", "fp32")
    training = params.training.model_copy(update={"batch_size": batch_size})
    return Trainer(network, normalize, chosen, training, 0, reader, reader, group)


def test_another_number_of_processes_is_refused(project):
    state = trainer(Group()).state_dict() | {"num_processes": 2}
    with pytest.raises(UserError, match="begun with 2 processes and cannot go on with 1: set training.num_processes=2"):
        trainer(Group()).load_state_dict(state)


def test_all_that_decides_the_model_must_be_the_same_in_all_processes(project):
    params, chosen = config.load(), numerics.resolve("cpu", "fp32")
    weights = Path(params.model.name) / "model.safetensors"
    splits = [ShardReader(f"data/shards/{name}") for name in ("train", "val")]
    same = resume.inputs(params, chosen, *splits)
    assert resume.inputs(config.load(), chosen, *splits) == same
    assert resume.inputs(params, chosen, *reversed(splits)) != same
    for section, key, value in (
        ("data", "normalization", "none"),
        ("data", "resize", "crop"),
        ("model", "dropout", 0.5),
        ("model", "freeze_backbone", True),
        ("training", "learning_rate", 0.1),
    ):
        changed = getattr(params, section).model_copy(update={key: value})
        assert resume.inputs(params.model_copy(update={section: changed}), chosen, *splits) != same, key
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"others")
    assert resume.inputs(params, chosen, *splits) != same


def test_a_process_with_other_inputs_is_refused_before_it_trains(project, monkeypatch):
    monkeypatch.setattr(Group, "send", lambda *_: b"others")
    monkeypatch.setattr(train, "build_network", lambda *_: pytest.fail("it goes on"))
    with pytest.raises(UserError, match="process 1 has other params"):
        train.fit(config.load(), numerics.resolve("cpu", "fp32"), Group(index=1, count=2))


def test_each_process_has_two_images_of_the_smallest_batch(project):
    """200 images in batches of at most 6 make 34 batches, and some have 5."""
    assert len(ShardReader("data/shards/train")) == 200
    with pytest.raises(UserError, match="3 are too many for training.batch_size = 6"):
        trainer(Group(count=3), batch_size=6)


def worker(launcher: int, rank: int) -> int:
    """The process of this rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = [child for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text()]
    return int(found)


@pytest.mark.full
def test_a_process_that_dies_ends_the_run_and_it_goes_on_to_the_same_bytes(project, change):
    change({"num_threads": None, "training": {"num_processes": 2, "num_epochs": 4}})
    words = [sys.executable, "-m", "stages.train"]
    whole = command(project, *words)
    assert "batch norm sees each process's own part of a batch" in whole.stdout
    expected = files.sha256("models/checkpoint/model.safetensors")
    shutil.rmtree("models/checkpoint")
    process = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(Path(".resume").glob("*/epoch-*")), process)
    os.kill(worker(process.pid, rank=1), signal.SIGKILL)
    _, errors = process.communicate(timeout=HANGS)  # gloo itself would wait as long as LOST_AFTER
    assert process.returncode == 1
    assert "error: process 1 of 2 was killed by signal 9" in errors and "Traceback" not in errors, errors

    change({"training": {"num_processes": 1}})
    refused = command(project, *words, ok=False)
    assert refused.returncode == 1 and refused.stderr.startswith("error: this training was begun with 2 processes")
    change({"training": {"num_processes": 2}})
    assert "resuming after epoch" in command(project, *words).stdout
    assert files.sha256("models/checkpoint/model.safetensors") == expected


@pytest.mark.full
def test_what_a_process_finds_wrong_is_said_once(project, change):
    change({"training": {"num_processes": 2}})
    path = project / "data/shards/val/index.json"
    path.unlink()
    path.write_text("{}")
    result = command(project, sys.executable, "-m", "stages.train", ok=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stderr.count("val/index.json is damaged") == 1
