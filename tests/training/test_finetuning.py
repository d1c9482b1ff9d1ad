"""What people who fine-tune expect: balance, accumulation, averages, patience, mixing, rates, frozen backbones."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from image_classifier.core import config, files
from image_classifier.images.shards import ShardReader
from image_classifier.model import numerics
from image_classifier.model.batches import batches, num_batches
from image_classifier.model.numerics import Compute
from image_classifier.training import features, stepper
from image_classifier.training.augment import mixing
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.distributed import Group
from image_classifier.training.layers import head_parameters, layers
from image_classifier.training.schedule import build_optimizer, build_scheduler, current_rate
from image_classifier.training.trainer import Trainer
from stages import train
from tests.helpers.architectures import TINY, hub_folder, settings
from tests.helpers.project import DEFAULTS, read, series
from tests.helpers.training import validations

LABELS = np.array([0] * 50 + [1] * 7 + [3] * 2)  # and no image of class 2


def make_trainer(
    kind: str = "vit", model: dict | None = None, compute: Compute | None = None, group: Group | None = None, **changes
) -> Trainer:
    """A trainer of a tiny network, from scratch in float32, on the project's images."""
    params, reader = config.load(), ShardReader("data/shards/train")
    path = hub_folder(Path(f"models/pretrained/{kind}"), kind)
    network = build_network(settings(path, dropout=0.0, **model or {}), reader.class_names, 64, seed=0)
    normalize = input_normalization("imagenet", params.model)
    plain = {"resolution_schedule": None, "batch_norm_images": None, "scheduler": "none", "warmup_fraction": 0.0}
    plain |= {"label_smoothing": 0.0}
    training = params.training.model_copy(update=plain | changes)
    compute = compute or numerics.resolve("cpu", "fp32")
    return Trainer(network, normalize, compute, training, 0, reader, reader, group or Group())


def test_class_weights_are_inverse_to_the_number_of_images():
    weights = stepper.class_weights(torch.from_numpy(LABELS), num_classes=4)
    assert weights[[0, 1, 3]] * torch.tensor([50, 7, 2]) == pytest.approx([59 / 3] * 3)
    assert weights[LABELS].mean().item() == pytest.approx(1.0) and weights.isfinite().all()


def test_a_clipped_gradient_is_no_longer_than_asked_for(project):
    trainer = make_trainer(optimizer="sgd", learning_rate=1.0, weight_decay=0.0, gradient_clip=1e-3)
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    images, labels = next(batches(trainer.train, 16))
    trainer.stepper.step(images, labels, 0, 64)
    moved = [parameter.detach() - old for parameter, old in zip(trainer.network.parameters(), before, strict=True)]
    length = math.sqrt(sum(float((part**2).sum()) for part in moved))
    assert length == pytest.approx(1.9e-3, rel=1e-3)  # Nesterov's first step is 1 + 0.9 times the gradient


@pytest.mark.parametrize(("scheduler", "half"), [("cosine", 0.5), ("one_cycle", 0.5), ("none", 1.0)])
def test_the_learning_rate_falls_as_its_scheduler_says(scheduler, half):
    training = config.load(DEFAULTS).training
    training = training.model_copy(update={"scheduler": scheduler, "warmup_fraction": 0.0})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    falling, rates = build_scheduler(optimizer, training, steps=100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        falling.step()
    assert rates[0] == 1 and rates[50] == pytest.approx(half)
    quarter = {"cosine": (1 + math.cos(math.pi / 4)) / 2, "one_cycle": 0.75, "none": 1.0}[scheduler]
    assert rates[25] == pytest.approx(quarter) and (scheduler == "none" or rates[99] < 0.011)


def test_fast_mode_says_what_it_leaves_out(project, capsys):
    augmentation = config.load().training.augmentation
    for mixup, said in ((0.0, 0), (0.2, 1)):
        make_trainer(fast_mode=True, augmentation=augmentation.model_copy(update={"mixup": mixup}))
        assert capsys.readouterr().out.count("training.augmentation is left out: training.fast_mode is true") == said


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rare_classes_weigh_more_in_the_loss(project, smoothing):
    trainer = make_trainer(class_weights=True, label_smoothing=smoothing)
    trainer.stepper.class_weights = weights = torch.arange(1.0, 11.0)
    images, labels = next(batches(trainer.train, 16))
    trainer.stepper.step(images, labels, 0, 64, update=False)
    network = copy.deepcopy(trainer.network)
    network.zero_grad()
    logits = network(pixel_values=trainer.normalize(images)).logits
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    (losses * weights[labels]).mean().backward()
    torch.testing.assert_close(trainer.network.classifier.weight.grad, network.classifier.weight.grad)


def test_smoothing_does_not_make_every_image_one_of_a_rare_class():
    """100 images of a class to each of the other: torch's own loss is least where all are called rare."""
    weights, targets = torch.tensor([0.5, 50.0]), torch.zeros(8, dtype=torch.int64)
    logits = torch.zeros(8, 2, requires_grad=True)
    for labels in (targets, F.one_hot(targets, 2).float()):
        (slope,) = torch.autograd.grad(stepper.smoothed_loss(logits, labels, weights, 0.1), logits)
        assert (slope[:, 0] < 0).all() and (slope[:, 1] > 0).all()  # toward its own class
    mixed = torch.tensor([[0.5, 0.5]])  # each class by its own weight, and the smoothing by their mean
    expected = (0.9 * (0.5 * 0.5 + 0.5 * 50) + 0.1 * 25.25) * math.log(2)
    assert stepper.smoothed_loss(torch.zeros(1, 2), mixed, weights, 0.1).item() == pytest.approx(expected)


def test_a_training_with_class_weights_runs_to_its_end(project, change):
    change({"training": {"class_weights": True}})
    train.main()
    assert series(project, "train_loss")[-1] < series(project, "train_loss")[0]


def test_accumulated_batches_make_the_step_of_one_large_batch(project):
    # ViT has no batch norm: there the sum of the gradients depends on nothing else.
    whole, parts = make_trainer(batch_size=40), make_trainer(batch_size=10, accumulate_batches=4)
    for trainer in (whole, parts):
        next(trainer.epochs())
    assert whole.stepper.scheduler.last_epoch == parts.stepper.scheduler.last_epoch == 5
    for name, weight in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_batches_that_are_left_over_make_a_smaller_step(project):
    trainer = make_trainer(batch_size=16, accumulate_batches=4)  # 13 batches: three steps, and one of a single batch
    steps = []
    trainer.stepper.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    next(trainer.epochs())
    assert num_batches(len(trainer.train), 16) == 13 and len(steps) == 4
    assert trainer.stepper.optimizer.param_groups[0]["params"][0].grad is None


def test_the_average_of_the_weights_is_what_is_validated_and_kept(project, monkeypatch):
    trainer = make_trainer("resnet", ema_decay=0.9, num_epochs=1)
    expected, update = None, stepper.average

    def watched(averaged: nn.Module, network: nn.Module, weight: float) -> None:
        nonlocal expected
        update(averaged, network, weight)
        now = {name: weight.clone() for name, weight in network.state_dict().items()}
        if expected is None:
            expected = now
        else:
            expected = {name: 0.9 * expected[name] + 0.1 * weight for name, weight in now.items()}

    monkeypatch.setattr(stepper, "average", watched)
    last = next(epochs := trainer.epochs())
    kept = trainer.best["weights"]
    for name, weight in kept.items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(kept["classifier.1.weight"], trainer.network.get_parameter("classifier.1.weight"))
    assert list(epochs) == []
    assert trainer.validate(64)["accuracy"] == last["val_accuracy"]
    assert torch.equal(trainer.network.get_parameter("classifier.1.weight"), kept["classifier.1.weight"])


def test_indices_in_buffers_are_not_averaged(project):
    trainer = make_trainer("swin", ema_decay=0.9, num_epochs=1)
    next(trainer.epochs())
    buffers = dict(trainer.network.named_buffers())
    indices = {name for name, buffer in buffers.items() if not buffer.is_floating_point()}
    assert any("relative_position_index" in name for name in indices)
    for name, buffer in trainer.stepper.shipped.named_buffers():
        if name in indices:
            assert torch.equal(buffer, buffers[name]), name


def test_a_killed_training_with_all_of_it_ends_in_the_same_bytes(project, change, monkeypatch):
    augmented = {**config.load().training.augmentation.model_dump(), "mixup": 0.2, "cutmix": 1.0}
    settings = {"ema_decay": 0.9, "accumulate_batches": 2, "class_weights": True, "head_lr_factor": 3.0}
    change({"training": settings | {"layer_lr_decay": 0.8, "fast_mode": False, "augmentation": augmented}})
    train.main()
    whole = files.sha256("models/checkpoint/model.safetensors"), series(project, "train_loss")
    calls = validations(monkeypatch, dies_in=2)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    train.main()
    assert len(calls) == 4  # the first epoch was not trained again
    assert (files.sha256("models/checkpoint/model.safetensors"), series(project, "train_loss")) == whole


def test_mixed_images_are_scored_by_what_they_show_most_of(project):
    trainer = make_trainer(
        fast_mode=False, augmentation=config.load().training.augmentation.model_copy(update={"mixup": 0.2})
    )
    images, labels = next(batches(trainer.train, 16))
    scored = [trainer.stepper.step(images, labels, seed, 64, update=False)[2] for seed in range(20)]
    others = [not torch.equal(found, labels) for found in scored]
    assert 4 < sum(others) < 16  # the other image is the stronger one in half of the batches
    assert all(torch.equal(found, labels.roll(1)) for found, other in zip(scored, others, strict=True) if other)


def test_patience_ends_a_training_that_gets_no_better(project, change, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "validate", lambda *_: dict.fromkeys(("loss", "accuracy"), 0.5))
    change({"training": {"num_epochs": 9, "patience": 2, "resolution_schedule": None}})
    train.main()
    assert len(series(project, "train_loss")) == 3  # the first is the best, and two were no better
    assert read(project / "metrics/train/metrics.json")["best_epoch"] == 0
    assert "train: no better in 2 epochs (training.patience): ending after epoch 3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patience", "schedule", "sizes"),
    [
        (1, [64, 32], [64, 64]),
        (2, [64, 32], [64, 64, 32, 64]),  # 32 px cannot be compared
        (1, [32, 64], [32, 32, 64, 64]),  # nor does it count before there is a best one
        (3, [32, 64], [32, 32, 64, 64]),
    ],
)
def test_patience_counts_epochs_at_full_size(project, monkeypatch, patience, schedule, sizes):
    monkeypatch.setattr(Trainer, "validate", lambda *_: dict.fromkeys(("loss", "accuracy"), 0.5))  # never better
    trainer = make_trainer(patience=patience, num_epochs=4, resolution_schedule=schedule)
    assert [values["val_image_size"] for values in trainer.epochs()] == sizes


@pytest.mark.parametrize("kinds", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_blends_images_and_their_classes_alike(kinds):
    change = mixing(config.load().training.augmentation.model_copy(update=kinds), num_classes=8)
    labels = torch.arange(8)
    images = labels.float().view(8, 1, 1, 1).expand(8, 3, 16, 16)  # each of the value of its class
    for seed in range(5):
        torch.manual_seed(seed)
        mixed, targets = change(images, labels)
        torch.manual_seed(seed)
        assert all(torch.equal(*pair) for pair in zip(change(images, labels), (mixed, targets), strict=True))
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ labels.float())
        assert (targets > 0).sum(dim=1).max() == 2


def test_nothing_is_mixed_unless_asked_for():
    assert mixing(config.load().training.augmentation, num_classes=3) is None


def test_each_layer_has_its_share_of_the_learning_rate(project):
    trainer = make_trainer("vit", head_lr_factor=10.0, layer_lr_decay=0.5, learning_rate=0.01)
    optimizer, network = trainer.stepper.optimizer, trainer.network
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    first, *blocks, head = layers(network, head_parameters(network))
    assert len(blocks) == TINY["vit"]["num_hidden_layers"] == 3
    for names, expected in zip((head, *reversed(blocks), first), (0.1, 0.01, 0.005, 0.0025, 0.00125), strict=True):
        assert names and {rates[id(network.get_parameter(name))] for name in names} == {expected}
    assert current_rate(optimizer) == 0.01
    assert len(build_optimizer(network, make_trainer("vit").training).param_groups) == 2


@pytest.mark.parametrize("kind", ["vit", "resnet", "mobilevit"])
def test_a_frozen_backbone_is_computed_once_and_predicts_the_same(project, kind):
    plain = make_trainer(kind, {"freeze_backbone": True}, num_epochs=2)
    other = make_trainer(kind, {"freeze_backbone": True}, num_epochs=2)
    seen = []
    other.network.base_model.register_forward_hook(lambda *_: seen.append(1))
    reader, compute = other.train, other.precision
    learner, prepare, *splits = features.set_up(other.network, other.normalize, compute, other.training, reader, reader)
    assert isinstance(learner, features.Head)
    (kept,) = splits[0].images
    assert kept.untyped_storage().nbytes() == kept.nbytes
    once = Trainer(learner, prepare, compute, other.training, 0, *splits)
    seen.clear()
    rows = list(zip(plain.epochs(), once.epochs(), strict=True))
    assert not seen  # the backbone did not run in any epoch
    for expected, found in rows:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, weight in plain.network.state_dict().items():
        torch.testing.assert_close(other.network.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ({}, {}),  # the backbone is trained
        ({"freeze_backbone": True, "unfreeze_blocks": 1}, {}),
        ({"freeze_backbone": True}, {"resolution_schedule": [32, 64]}),
        ({"freeze_backbone": True}, {"fast_mode": False}),  # images are flipped
    ],
)
def test_what_changes_from_epoch_to_epoch_is_not_computed_once(project, model, changes):
    trainer = make_trainer("mobilevit", model, **changes)
    assert features.lone_head(trainer.network, trainer.training, 64) is None


def test_dropout_before_the_head_is_seen(project):
    trainer = make_trainer("mobilevit", {"freeze_backbone": True})
    for module in trainer.network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    given = trainer.network, trainer.normalize, trainer.precision, trainer.training, trainer.train, trainer.train
    assert features.set_up(*given)[0] is trainer.network


def test_a_frozen_stage_writes_a_whole_checkpoint(project, change, capsys):
    change({"model": {"freeze_backbone": True}, "training": {"resolution_schedule": None}})
    train.main()
    assert "the features of the frozen backbone are computed once" in capsys.readouterr().out
    start = build_network(config.load().model, list("0123456789"), 64, 0).state_dict()
    trained = load_file("models/checkpoint/model.safetensors")
    assert {name for name in trained if not torch.equal(trained[name], start[name])} == {
        "classifier.weight",
        "classifier.bias",
    }
