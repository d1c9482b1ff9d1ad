"""Every kind of classifier, from scratch and from a local folder as the hub serves it."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    MobileViTImageProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

from image_classifier.core import config
from image_classifier.core.config import Data, Model
from image_classifier.core.errors import UserError
from image_classifier.export import formats
from image_classifier.export.to_onnx import Classifier, to_onnx
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint, numerics
from image_classifier.model.inference import predict
from image_classifier.model.normalize import Normalize
from image_classifier.training.build import OUTSIDE, build_network, input_normalization
from image_classifier.training.layers import head_parameters, layers
from image_classifier.training.schedule import build_optimizer
from image_classifier.training.sizes import check_sizes, forward_options
from image_classifier.training.trainer import Trainer
from tests.helpers import architectures
from tests.helpers.architectures import KINDS, hub_folder, settings

CLASSES = ["cat", "dog", "fish"]


def build(model: Model, image_size: int = 64):
    return build_network(model, CLASSES, image_size, seed=0)


def refused(model: Model, image_size: int = 64) -> str:
    with pytest.raises(UserError) as error:
        build(model, image_size)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("chosen", "rates"), [(None, {0.0, 0.1}), (0.3, {0.3}), (0.0, {0.0})])
def test_dropout_is_a_setting(tmp_path, chosen, rates):
    network = build(settings(hub_folder(tmp_path, "mobilevit"), dropout=chosen))
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == rates


@pytest.mark.parametrize("kind", ["vit", "swin", "siglip"])
def test_dropout_is_that_of_attention_too(tmp_path, kind):
    network = build(settings(hub_folder(tmp_path, kind), dropout=0.3))
    kept = [getattr(module, name, 0) for module in network.modules() for name in ("dropout", "attention_dropout")]
    assert {rate for rate in kept if isinstance(rate, float)} == {0.3}


def test_swin_shifts_its_windows_again_after_a_small_image(tmp_path):
    """Where the window is as large as the image, transformers' own notes for good that it does not."""
    network, fresh = (build(settings(hub_folder(tmp_path, "swin"))).eval() for _ in range(2))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        network(pixel_values=images[:, :, :32, :32])
        assert torch.equal(network(pixel_values=images).logits, fresh(pixel_values=images).logits)


def test_a_prediction_is_that_of_the_weights_as_they_are():
    """LeViT keeps biases of attention from one pass to the next, until it is told to train."""
    tiny = LevitConfig(**architectures.TINY["levit"], num_labels=3)
    network, fresh = (LevitForImageClassification(tiny) for _ in range(2))
    batch = [(torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8), torch.arange(4) % 3)]
    compute = numerics.resolve("cpu", "fp32")
    predict(network, Normalize((0.5,) * 3, (0.5,) * 3), batch, compute)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.rand_like(weight))
    fresh.load_state_dict(network.state_dict())
    found, expected = (predict(made, Normalize((0.5,) * 3, (0.5,) * 3), batch, compute)[1] for made in (network, fresh))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["pvt", "poolformer"])
def test_the_patch_embedding_of_a_block_is_of_that_block(tmp_path, kind):
    network = build(settings(hub_folder(tmp_path, kind)))
    first, *blocks, _ = layers(network, head_parameters(network))
    for number, names in enumerate(blocks):
        assert any(f"patch_embeddings.{number}." in name for name in names)
    assert not any("patch_embeddings" in name for name in first)


def test_rates_by_layer_need_layers(tmp_path):
    network = build(settings(hub_folder(tmp_path, "vit")))
    for name, part in list(network.base_model.named_children()):
        if isinstance(part, nn.ModuleList):
            setattr(network.base_model, name, nn.Sequential(*part))
    training = config.load().training.model_copy(update={"layer_lr_decay": 0.5})
    with pytest.raises(UserError, match="training.layer_lr_decay: ViTForImageClassification has no list of blocks"):
        build_optimizer(network, training)


@pytest.mark.parametrize("kind", KINDS)
def test_from_scratch(tmp_path, kind):
    network = build(settings(hub_folder(tmp_path, kind)))
    assert list(network.config.id2label.values()) == CLASSES
    assert network.eval()(pixel_values=torch.randn(2, 3, 64, 64)).logits.shape == (2, 3)


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_weights_are_taken_and_the_head_is_ours(tmp_path, kind, weights):
    path = hub_folder(tmp_path, kind, weights=weights)
    network, again = build(settings(path, pretrained=True)), build(settings(path, pretrained=True))
    original = AutoModelForImageClassification.from_pretrained(path)
    theirs = original.base_model.state_dict()
    for name, tensor in network.base_model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    head = [name for name, _ in network.named_parameters() if not name.startswith(network.base_model_prefix)]
    assert head
    for name in head:
        parameter = network.get_parameter(name)
        assert parameter.shape[0] == len(CLASSES) and parameter.isfinite().all() and parameter.std() < 1
        assert torch.equal(parameter, again.get_parameter(name)), "seeded"
    assert network.get_parameter(head[0]).std() > 0


def test_a_head_for_as_many_other_classes_is_not_kept(tmp_path):
    path = hub_folder(tmp_path, "mobilevit", num_labels=len(CLASSES), weights="safetensors")
    ours, theirs = build(settings(path, pretrained=True)), AutoModelForImageClassification.from_pretrained(path)
    assert ours.classifier.weight.shape == theirs.classifier.weight.shape
    assert not torch.equal(ours.classifier.weight, theirs.classifier.weight)


@pytest.mark.parametrize(("kind", "blocks"), [("mobilevit", 5), ("vit", 3), ("resnet", 3), ("efficientnet", 7)])
def test_freezing_all_but_the_last_blocks(tmp_path, kind, blocks):
    path = hub_folder(tmp_path, kind, weights="safetensors")
    counts = []
    for last in (0, 1, blocks):
        network = build(settings(path, pretrained=True, freeze_backbone=True, unfreeze_blocks=last))
        counts.append(sum(parameter.requires_grad for parameter in network.base_model.parameters()))
        assert all(
            p.requires_grad for n, p in network.named_parameters() if not n.startswith(network.base_model_prefix)
        )
    assert counts[0] == 0 < counts[1] < counts[2] < len(list(network.base_model.parameters()))
    message = refused(settings(path, pretrained=True, freeze_backbone=True, unfreeze_blocks=99))
    assert f"model.unfreeze_blocks = 99, but the backbone has {blocks} blocks" in message


@pytest.mark.parametrize("kind", ["efficientnet", "mobilenet_v1", "mobilenet_v2", "resnet"])
def test_batch_norm_averages_over_more_than_the_last_batch(tmp_path, kind):
    network = build(settings(hub_folder(tmp_path, kind)))
    momenta = {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta and all(0.01 <= momentum <= 0.1 for momentum in momenta)


def test_dropout_of_attention_that_a_checkpoint_gives_as_a_whole_number(tmp_path):
    path = hub_folder(tmp_path, "vit")
    told = json.loads((path / "config.json").read_text()) | {"attention_probs_dropout_prob": 0}
    (path / "config.json").write_text(json.dumps(told))
    network = build(settings(path, dropout=0.3))
    found = {module.attention_dropout for module in network.modules() if hasattr(module, "attention_dropout")}
    assert found == {0.3}


def test_no_decay_for_norms_and_biases(tmp_path):
    network = build(settings(hub_folder(tmp_path, "resnet")))
    training = config.load().training.model_copy(update={"weight_decay": 0.1, "decay_norms_and_biases": False})
    groups = build_optimizer(network, training).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(p)] for n, p in network.named_parameters() if n.endswith("bias") or p.ndim == 1} == {0.0}
    assert {decay[id(p)] for p in network.parameters() if p.ndim > 1} == {0.1}


def test_position_embeddings_tie_vit_to_its_size(tmp_path):
    path = hub_folder(tmp_path, "vit", weights="safetensors")
    assert "takes images of 64 px: set data.image_size to that, not 96" in refused(settings(path, pretrained=True), 96)
    network = build(settings(path), 96)  # from scratch any size will do, and smaller ones in the schedule
    small = network(pixel_values=torch.randn(1, 3, 64, 64), **forward_options(network, 64)).logits
    assert small.shape == (1, 3)


def test_the_checkpoints_own_normalization(tmp_path):
    path = hub_folder(tmp_path, "mobilevit", weights="bin")
    with pytest.raises(UserError, match="has no preprocessor_config.json that can be"):
        input_normalization("checkpoint", settings(path))
    MobileViTImageProcessor().save_pretrained(path)
    normalize = input_normalization("checkpoint", settings(path))
    assert normalize.to_bgr and normalize.mean == (0, 0, 0) and normalize.std == (1, 1, 1)
    # As older files say it: what is not there is the class's own default.
    (path / "preprocessor_config.json").write_text('{"feature_extractor_type": "MobileViTFeatureExtractor"}')
    assert input_normalization("checkpoint", settings(path)).to_bgr
    (path / "preprocessor_config.json").write_text('{"image_processor_type": "EfficientNetImageProcessor"}')
    with pytest.raises(UserError, match="divides by the deviation twice"):
        input_normalization("checkpoint", settings(path))


def test_bad_models_are_refused_in_one_line(tmp_path):
    assert "needs model.revision, the commit of the model" in refused(
        settings("apple/mobilevit-small", pretrained=True)
    )
    message = refused(settings("apple/mobilevit-small", pretrained=True, revision="0" * 40))
    assert "`hf download apple/mobilevit-small --revision 0000" in message
    missing = settings(tmp_path / "nothing", pretrained=True, revision="0" * 40)
    assert "there is no such folder" in refused(missing)
    assert "cannot be loaded" in refused(settings(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "bert is no image classifier of transformers" in refused(settings(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mobilevit", "hidden_sizes": "many"}')
    assert "cannot be loaded" in refused(settings(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "cannot be loaded" in refused(settings(tmp_path))


def test_weights_of_another_architecture_are_refused(tmp_path):
    hub_folder(tmp_path / "resnet", "resnet", weights="bin")
    path = hub_folder(tmp_path / "mobilevit", "mobilevit")
    (tmp_path / "resnet/pytorch_model.bin").rename(path / "pytorch_model.bin")
    assert "its weights are of another architecture than its config.json" in refused(settings(path, pretrained=True))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_weights_are_refused(tmp_path, file):
    path = hub_folder(tmp_path, "mobilevit", weights="bin" if file.endswith("bin") else "safetensors")
    data = (path / file).read_bytes()
    for damaged in (data[: len(data) // 2], b""):
        (path / file).write_bytes(damaged)
        assert "cannot be loaded" in refused(settings(path, pretrained=True))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = hub_folder(tmp_path, "mobilevit", weights="bin")
    weights = torch.load(path / "pytorch_model.bin", weights_only=True)
    next(iter(weights.values())).fill_(float("nan"))
    torch.save(weights, path / "pytorch_model.bin")
    assert "weights that are not finite" in refused(settings(path, pretrained=True))


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_malicious_pickle_is_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = hub_folder(tmp_path / "model", "mobilevit")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious()}))
    assert "cannot be loaded" in refused(settings(path, pretrained=True))
    torch.save({"weight": Malicious()}, path / "pytorch_model.bin")
    assert "cannot be loaded" in refused(settings(path, pretrained=True))
    assert not (tmp_path / "executed").exists()


def test_a_repository_with_code_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what a person at a terminal might answer
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    auto = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    assert "cannot be loaded" in refused(settings(tmp_path))
    assert "cannot be loaded" in refused(settings(tmp_path, pretrained=True))
    assert not (tmp_path / "executed").exists()


def test_a_model_whose_head_cannot_be_told_from_its_backbone_is_refused(tmp_path, monkeypatch):
    path = hub_folder(tmp_path, "resnet", weights="safetensors")
    monkeypatch.setattr(AutoModelForImageClassification, "from_pretrained", _without_head)
    assert "has no linear layer with 1000 outputs to be its head" in refused(settings(path, pretrained=True))


def _without_head(path, **_):
    network = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(path))
    network.classifier = nn.Identity()
    return network, {"missing_keys": [], "mismatched_keys": []}


def test_a_local_folder_that_is_missing_is_not_looked_for_on_the_hub():
    message = refused(settings("models/pretrained/gone", pretrained=True))
    assert "there is no such folder" in message and "`dvc add`" in message


def test_a_revision_that_does_not_exist_is_one_line(monkeypatch):
    def fails(*_, **__):
        raise OSError("0000 is not a valid git identifier for this model name.\nCheck the model page.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", fails)
    message = refused(settings("apple/mobilevit-small", pretrained=True, revision="0" * 40))
    assert "is not a valid git identifier" in message
    assert "--local-dir models/pretrained/mobilevit-small" in message


# ---------------------------------------------------------------- every architecture of transformers


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Make a tiny checkpoint of a kind, with a head of 7 classes of its own."""

    def make(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind)
        tiny = AutoConfig.for_model(**{**architectures.TINY[kind], "model_type": kind, "num_labels": 7})
        names = CLASSIFIERS[kind]
        tiny.architectures = [names[0] if isinstance(names, tuple) else names]
        torch.manual_seed(1)
        AutoModelForImageClassification.from_config(tiny).save_pretrained(path)
        return path

    return make


def test_every_architecture_is_tried_or_has_a_reason_not_to_be():
    outside = {*OUTSIDE, "timm_wrapper"}  # which has tests of its own
    assert architectures.TINY.keys() | outside == CLASSIFIERS.keys()


@pytest.mark.parametrize("kind", architectures.TINY)
@pytest.mark.pipeline  # all of them take half a minute
def test_every_architecture_trains_at_each_size_freezes_and_is_saved(pretrained, tmp_path, kind):
    path = pretrained(kind)
    build(settings(path))  # from scratch
    network = build(settings(path, pretrained=True)).train()
    theirs, ours = AutoModelForImageClassification.from_pretrained(path).state_dict(), network.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    head = head_parameters(network)
    assert changed and changed <= head
    for size in (64,) if kind in architectures.ONE_SIZE else (64, 96):
        check_sizes(network, {size: 2})
        pixels = torch.randn(2, 3, size, size)
        network(pixel_values=pixels, **forward_options(network, size)).logits.square().mean().backward()
    if kind in architectures.ONE_SIZE:
        with pytest.raises(UserError, match="cannot be trained at 96 px"):
            check_sizes(network, {96: 2})
    whole = sum(parameter.numel() for parameter in network.parameters())
    trained = []
    for last in (0,) if kind == "perceiver" else (0, 1):  # whose blocks are one
        frozen = build(settings(path, pretrained=True, freeze_backbone=True, unfreeze_blocks=last))
        trained.append({name for name, parameter in frozen.named_parameters() if parameter.requires_grad})
    assert trained[0] == head
    if len(trained) == 2:
        share = sum(network.get_parameter(name).numel() for name in trained[1]) / whole
        assert trained[0] < trained[1] and share < 0.8  # the last of two or more
    checkpoint.save(tmp_path / "saved", network, Normalize(), Resize(64, "stretch"))
    loaded, _, _ = checkpoint.load(tmp_path / "saved")
    assert list(loaded.config.id2label.values()) == CLASSES
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in architectures.COMMON else pytest.param(kind, marks=pytest.mark.full)
        for kind in architectures.TINY
    ],
)
@pytest.mark.pipeline  # which takes seconds each
def test_what_trains_is_exported_for_batches_of_any_size_and_runs_in_the_pipeline(pretrained, tmp_path, kind):
    normalize, resize = Normalize(), Resize(64, "stretch")
    network = build(settings(pretrained(kind), pretrained=True)).eval()
    to_onnx(tmp_path / "model.onnx", network, normalize, resize, CLASSES)
    session, whole = formats.session(tmp_path / "model.onnx"), Classifier(network, normalize).eval()
    for count in (1, 2, 5):
        images = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = whole(images).numpy()
        np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected, atol=1e-5)
    checkpoint.save(tmp_path / "saved", network, normalize, resize)
    found = formats.run_pipeline(tmp_path / "saved", iter([(images, torch.zeros(5))]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "reason"), OUTSIDE.items())
def test_what_has_no_place_here_is_refused_with_the_reason(kind, reason):
    assert refused(settings(kind)).endswith(f"cannot be trained here: {kind} {reason}; choose another model")


@pytest.mark.parametrize("kind", ["deit", "levit"])
def test_a_type_with_several_heads_is_built_with_the_first(kind):
    assert list(build(settings(kind), image_size=224).config.id2label.values()) == CLASSES


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_checkpoint_of_another_problem_gives_probabilities_in_the_pipeline(pretrained, tmp_path, problem):
    (path := tmp_path / "theirs").mkdir()
    shutil.copytree(pretrained("resnet"), path, dirs_exist_ok=True)
    theirs = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(theirs | {"problem_type": problem}))
    for pretrained_ in (True, False):
        network = build(settings(path, pretrained=pretrained_)).eval()
        checkpoint.save(tmp_path / "saved", network, Normalize(), Resize(64, "stretch"))
        images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
        found = formats.run_pipeline(tmp_path / "saved", iter([(images, torch.zeros(4))]))
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        shutil.rmtree(tmp_path / "saved")


def test_a_network_that_no_onnx_file_holds_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("image_classifier.training.build.LARGEST", 2**20)
    assert "GiB of weights, an ONNX file holds under 2" in refused(settings("resnet"))


def test_a_checkpoint_for_grey_images_is_one_line(tmp_path):
    tiny = AutoConfig.for_model("resnet", num_channels=1, **architectures.TINY["resnet"])
    AutoModelForImageClassification.from_config(tiny).save_pretrained(tmp_path)
    for pretrained_ in (True, False):
        assert "takes images of 1 channels, and here all are RGB" in refused(settings(tmp_path, pretrained=pretrained_))


def test_patches_of_14_pixels_need_no_multiple_of_32(tmp_path):
    tiny = AutoConfig.for_model("vit", **{**architectures.TINY["vit"], "image_size": 70, "patch_size": 14})
    AutoModelForImageClassification.from_config(tiny).save_pretrained(tmp_path)
    network = build(settings(tmp_path, pretrained=True), image_size=70)
    check_sizes(network, {70: 1})
    assert Data.model_validate(config.load().data.model_dump() | {"image_size": 70}).image_size == 70


def test_recomputed_batch_norm_is_not_biased_by_dropout(project, change):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(3)
            self.drop_rate = 0.1  # as in the layers of timm's DenseNet

        def forward(self, pixel_values):
            kept = F.dropout(self.dropout(torch.ones(len(pixel_values), 3)), self.drop_rate, self.training)
            return self.norm(kept)

    change({"training": {"batch_norm_images": 64}})
    params, reader = config.load(), ShardReader("data/shards/train")
    network = build_network(params.model, reader.class_names, 64, 0)
    chosen = numerics.resolve("cpu", "fp32")
    trainer = Trainer(network, Normalize(), chosen, params.training, 0, reader, reader)
    trainer.stepper.network = constant = Constant()
    trainer.recompute_batch_norm(0)
    assert constant.norm.running_var.abs().max() < 1e-6 and constant.dropout.p == constant.drop_rate == 0.1
