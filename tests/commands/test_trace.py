"""The trace of a training, and the first tensor that differs on another machine."""

import hashlib
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from image_classifier.commands import trace, verify
from image_classifier.core import files
from image_classifier.core.errors import UserError
from image_classifier.training import stepper, trainer
from tests.helpers.project import command

TRACE = Path("trace.json")
WRITTEN = ("data", "models", "metrics", ".resume")  # by stages, and not by a trace


@pytest.fixture
def traced(project, change) -> dict:
    """What this machine computes, for others to compare with."""
    change({"training": {"num_epochs": 2, "resolution_schedule": None}})
    trace.main(TRACE)
    return files.read_json(TRACE, "")


def on_another_machine(monkeypatch, name: str, register: str) -> None:
    """Make one layer of the network round differently, in its output or in the gradient that it passes back."""
    build = trace.build_network

    def built(*arguments):
        network = build(*arguments)
        layer = network.get_submodule(name)
        if register == "forward":
            layer.register_forward_hook(lambda _, __, output: output * (1 + 2**-20))
        else:
            layer.register_full_backward_hook(lambda _, inputs, __: (inputs[0] * (1 + 2**-20),))
        return network

    monkeypatch.setattr(trace, "build_network", built)


def test_the_same_machine_computes_the_same(traced, project, capsys):
    before = {path: path.stat().st_mtime_ns for folder in WRITTEN for path in Path(folder).rglob("*")}
    assert verify.main(record=False, against=TRACE) == 0
    assert before == {path: path.stat().st_mtime_ns for folder in WRITTEN for path in Path(folder).rglob("*")}
    assert f"the same {len(traced['tensors'])} tensors as in trace.json" in capsys.readouterr().out
    places = [where for where, _ in traced["tensors"]]
    assert places[:3] == ["prepare, data/shards/train", "prepare, data/shards/val", "prepare, data/shards/test"]
    assert places[-1] == "evaluate, probabilities on test"
    for part in (
        "before the first step",
        "input of the network",
        "output of classifier (Linear)",
        "gradient of classifier.weight",
    ):
        assert any(part in where for where in places), part
    outputs = [where for where in places if "output of" in where]
    assert len(outputs) == len(set(outputs)), "a second step was watched"
    assert {where.split(",")[1] for where in places if "after epoch" in where} == {" after epoch 1", " after epoch 2"}


def test_what_is_traced_is_the_training_of_the_stage(project):
    trace.main(TRACE)
    found = dict(files.read_json(TRACE, "")["tensors"])
    best = files.read_json("metrics/train/metrics.json", "")["best_epoch"] + 1
    for name, tensor in load_file("models/checkpoint/model.safetensors").items():
        digest = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        assert found[f"train, after epoch {best}, {name}"] == digest[:16], name


@pytest.mark.parametrize(
    ("name", "register", "first"),
    [
        ("mobilevit.conv_stem.convolution", "forward", "output of mobilevit.conv_stem.convolution (Conv2d)"),
        ("classifier", "forward", "output of classifier (Linear)"),
        ("mobilevit.conv_1x1_exp.activation", "backward", "gradient of mobilevit.conv_1x1_exp.normalization"),
    ],
)
def test_the_first_layer_that_rounds_differently_is_named(traced, project, monkeypatch, capsys, name, register, first):
    on_another_machine(monkeypatch, name, register)
    assert verify.main(record=False, against=TRACE) == 1
    assert f"first difference: train, epoch 1, step 1, {first}" in capsys.readouterr().out


def test_a_later_epoch_and_other_machines_are_named(traced, project, monkeypatch, capsys):
    real = trainer.Trainer._train_epoch

    def train_epoch(self, epoch):
        values = real(self, epoch)
        if epoch == 1:
            with torch.no_grad():
                self.network.classifier.bias.mul_(1 + 2**-20)
        return values

    monkeypatch.setattr(trainer.Trainer, "_train_epoch", train_epoch)
    files.write_json(TRACE, traced | {"environment": traced["environment"] | {"processor": "another one"}})
    assert verify.main(record=False, against=TRACE) == 1
    printed = capsys.readouterr().out
    assert "first difference: train, after epoch 2, classifier.bias" in printed
    assert "the machines differ in: processor: another one there, " in printed


@pytest.mark.parametrize("place", ["prepare, data/shards/val", "train, before the first step, classifier.weight"])
def test_the_data_and_the_weights_come_before_the_training(traced, project, capsys, place):
    tensors = [[where, "0" * 16 if where == place else found] for where, found in traced["tensors"]]
    files.write_json(TRACE, traced | {"tensors": tensors})
    assert verify.main(record=False, against=TRACE) == 1
    assert f"first difference: {place}\n" in capsys.readouterr().out


def test_a_difference_in_the_images_is_not_blamed_on_a_layer(traced, project, monkeypatch, capsys):
    monkeypatch.setattr(stepper, "augment", lambda images, *_: images.flip(0))
    monkeypatch.setattr(stepper, "rescale", lambda images, _: images * (1 + 2**-20))
    assert verify.main(record=False, against=TRACE) == 1
    assert "first difference: train, epoch 1, step 1, input of the network" in capsys.readouterr().out


def test_a_trace_of_another_length_is_not_the_same(traced, project, capsys):
    tensors = traced["tensors"]
    for changed, message in (
        ([*tensors, ["extra", "0" * 16]], "extra, which is not computed here"),
        (tensors[:-1], "evaluate, probabilities on test, where the trace has its end"),
        (tensors[:1] + tensors[2:], "prepare, data/shards/val, where the trace has prepare, data/shards/test"),
    ):
        files.write_json(TRACE, traced | {"tensors": changed})
        assert verify.main(record=False, against=TRACE) == 1
        assert f"first difference: {message}\n" in capsys.readouterr().out


def test_the_frozen_backbone_and_the_moving_average_are_traced(project, change, monkeypatch, capsys):
    training = {"num_epochs": 1, "resolution_schedule": None, "fast_mode": True, "ema_decay": 0.9}
    change({"model": {"freeze_backbone": True, "dropout": 0.0}, "training": training | {"batch_norm_images": None}})
    trace.main(TRACE)
    places = [where for where, _ in files.read_json(TRACE, "")["tensors"]]
    assert any("moving average" in where for where in places)
    assert "train, features of the frozen backbone on val" in places
    on_another_machine(monkeypatch, "mobilevit.conv_stem.convolution", "forward")
    assert verify.main(record=False, against=TRACE) == 1
    assert "first difference: train, features of the frozen backbone on train\n" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line(traced, project, change):
    files.write_json(Path("other.json"), {"accuracy": 1})
    files.write_json(Path("odd.json"), {"environment": 1, "params": 1, "tensors": 1})
    Path("broken.json").write_text("{")
    for name, message in (
        ("missing.json", "missing.json is missing"),
        ("broken.json", "broken.json is damaged"),
        ("other.json", "other.json is not a trace: write one with `image-classifier trace`"),
        ("odd.json", "odd.json is not a trace"),
    ):
        with pytest.raises(UserError, match=message):
            verify.main(record=False, against=Path(name))
    with pytest.raises(UserError, match="models cannot be written: .*Is a directory"):
        trace.main(Path("models"))
    assert Path("models/checkpoint").is_dir()
    change({"training": {"learning_rate": 0.02}, "seed": 1})
    with pytest.raises(
        UserError, match="other params: seed: 0 there, 1 here; training.learning_rate: 0.01 there, 0.02"
    ):
        verify.main(record=False, against=TRACE)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's instruction sets are those of x86-64")
def test_another_instruction_set_is_another_machine(project, change):
    change({"training": {"num_epochs": 1, "resolution_schedule": None}})
    words = ("python", "-m", "image_classifier")
    command(project, *words, "trace", "trace.json")
    result = command(project, *words, "verify", "--against", "trace.json", ok=False, ONEDNN_MAX_CPU_ISA="SSE41")
    assert result.returncode == 1, result.stderr
    assert "the machines differ in: ONEDNN_MAX_CPU_ISA: None there, SSE41 here" in result.stdout
    assert "first difference: train, epoch 1, step 1, output of mobilevit.conv_stem.convolution" in result.stdout
