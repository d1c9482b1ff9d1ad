"""Classifiers of timm: from scratch, and from folders as timm's models lie on the hub."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, ViTImageProcessor

from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.export import formats
from image_classifier.export.to_onnx import Classifier, to_onnx
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint, numerics
from image_classifier.model.normalize import Normalize
from image_classifier.training import features
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.distributed import synchronize_batch_norm
from image_classifier.training.layers import head_parameters, layers
from image_classifier.training.sizes import check_sizes
from image_classifier.training.trainer import Trainer
from tests.helpers.architectures import settings, timm_folder

CLASSES = ["cat", "dog", "fish"]
# Small ones that timm keeps for tests: convolutions, with batch norm; attention, of one size; two stages of ConvNeXt.
KINDS = ("test_efficientnet", "test_vit", "test_convnext")
SIZE = 160  # pixels, of all three
ONE_SIZE = "vit_tiny_patch16_224"  # which takes no other size


def build(name: str | Path, size: int = SIZE, **changes):
    return build_network(settings(name, **changes), CLASSES, size, seed=0)


@pytest.mark.parametrize("num_classes", [5, len(CLASSES)])  # theirs: as many as ours are other classes all the same
@pytest.mark.parametrize("kind", KINDS)
def test_the_backbone_is_theirs_and_the_head_is_ours(tmp_path, kind, num_classes):
    path = timm_folder(tmp_path, kind, num_classes)
    theirs = {f"timm_model.{name}": weight for name, weight in load_file(path / "model.safetensors").items()}
    network, again = build(path, pretrained=True), build(path, pretrained=True)
    head = head_parameters(network)
    assert head and {network.get_parameter(name).shape[0] for name in head} == {len(CLASSES)}
    for name, weight in network.state_dict().items():
        if name in head:
            assert torch.equal(weight, again.state_dict()[name]), name
            assert weight.ndim == 1 or not torch.equal(weight, theirs[name]), name
        else:
            assert torch.equal(weight, theirs[name]), name
    assert network(pixel_values=torch.zeros(2, 3, SIZE, SIZE)).logits.shape == (2, len(CLASSES))


@pytest.mark.parametrize("kind", [*KINDS, ONE_SIZE])
def test_from_scratch_the_weights_are_drawn_as_timm_draws_them(kind):
    network = build(f"timm/{kind}", 96)  # another size than its own
    torch.manual_seed(0)
    plain = timm.create_model(kind, num_classes=len(CLASSES), **network.config.model_args or {})
    for name, weight in network.timm_model.state_dict().items():
        theirs = plain.state_dict()[name]
        assert weight.shape == theirs.shape
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(theirs.std().item(), rel=0.3, abs=1e-3), name
    check_sizes(network, {96: 2})


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_frozen_from_the_input_on(tmp_path, kind):
    path = timm_folder(tmp_path, kind)
    network = build(path, pretrained=True)
    head = head_parameters(network)
    parts = layers(network, head)
    assert sorted(name for part in parts for name in part) == sorted(name for name, _ in network.named_parameters())
    assert set(parts[-1]) == head and all(parts) and len(parts) > 3
    for last in (0, 1, len(parts) - 2):
        frozen = build(path, pretrained=True, freeze_backbone=True, unfreeze_blocks=last)
        trained = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
        assert trained == {name for part in parts[len(parts) - 1 - last :] for name in part}
    with pytest.raises(UserError, match=rf"unfreeze_blocks = 99, but the backbone has {len(parts) - 2} blocks"):
        build(path, pretrained=True, freeze_backbone=True, unfreeze_blocks=99)


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_has_our_classes_and_our_preprocessing_in_every_format(tmp_path, kind):
    path = timm_folder(tmp_path / "hub", kind)
    network, resize = build(path, pretrained=True).eval(), Resize(SIZE, "stretch")
    normalize = input_normalization("checkpoint", settings(path))
    assert (normalize.mean, normalize.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    checkpoint.save(tmp_path / "saved", network, normalize, resize)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path / "saved"), ViTImageProcessor)
    loaded, _, _ = checkpoint.load(tmp_path / "saved")
    assert list(loaded.config.id2label.values()) == CLASSES
    to_onnx(tmp_path / "model.onnx", loaded, normalize, resize, CLASSES)
    images = torch.randint(0, 256, (5, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = Classifier(network, normalize).eval()(images).numpy()
    session = formats.session(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected, atol=1e-5)
    found = formats.run_pipeline(tmp_path / "saved", iter([(images, torch.zeros(5))]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_synchronized_batch_norm_keeps_the_activation():
    network = build("timm/test_efficientnet").timm_model
    before = [layer for layer in network.modules() if hasattr(layer, "act")]
    wrapper = build("timm/test_efficientnet")
    synchronize_batch_norm(wrapper)
    layers_ = [layer for layer in wrapper.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert before and sum(hasattr(layer, "act") for layer in layers_) == len(before)
    assert {type(layer.act) for layer in layers_} == {type(layer.act) for layer in before}


def test_a_model_that_timm_has_no_groups_for_is_frozen_too():
    network = build("timm/poolformerv2_s12", 64, freeze_backbone=True)
    assert not hasattr(network.timm_model, "group_matcher")
    assert {n for n, p in network.named_parameters() if p.requires_grad} == head_parameters(network)


def test_a_frozen_model_of_timm_is_computed_once_with_a_rate_of_its_own_for_the_head(project):
    network = build("timm/test_efficientnet", 64, freeze_backbone=True)
    plain = {"resolution_schedule": None, "batch_norm_images": None, "head_lr_factor": 10.0}
    training, reader = config.load().training.model_copy(update=plain), ShardReader("data/shards/val")
    reader.labels, reader.class_names = reader.labels % 3, CLASSES
    chosen = numerics.resolve("cpu", "fp32")
    learner, prepare, *splits = features.set_up(network, Normalize(), chosen, training, reader, reader)
    assert isinstance(learner, features.Head)
    trainer = Trainer(learner, prepare, chosen, training, 0, *splits)
    assert {group["factor"] for group in trainer.stepper.optimizer.param_groups} == {10.0}
    assert next(trainer.epochs())["train_loss"] < 3


def test_dropout_is_set_also_where_a_head_keeps_it_as_a_number():
    network = build("timm/test_efficientnet", dropout=0.25)
    assert network.timm_model.drop_rate == 0.25
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} <= {0.25}


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_typo_is_told_with_names_like_it(pretrained):
    with pytest.raises(UserError, match=r"has no resnt18; did you mean timm/resnet18 or .*\?$"):
        build("timm/resnt18.a1_in1k", pretrained=pretrained)
    with pytest.raises(UserError, match=r"has no xyzzy; see timm.list_models\(\)$"):
        build("timm/xyzzy", pretrained=pretrained)


def test_weights_from_the_hub_need_a_commit():
    with pytest.raises(UserError, match="model.name = timm/resnet18.a1_in1k needs model.revision"):
        build("timm/resnet18.a1_in1k", pretrained=True)


def test_a_folder_of_an_architecture_that_timm_does_not_have(tmp_path):
    path = timm_folder(tmp_path, "test_efficientnet")
    (path / "config.json").write_text((path / "config.json").read_text().replace("test_effi", "test_effy"))
    with pytest.raises(UserError, match="has no test_effycientnet; did you mean timm/test_efficientnet"):
        build(path, pretrained=True)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = timm_folder(tmp_path / "one", "test_efficientnet")
    timm_folder(tmp_path / "other", "test_convnext")
    (tmp_path / "other/model.safetensors").rename(path / "model.safetensors")
    with pytest.raises(UserError, match="its weights are of another architecture than its config.json"):
        build(path, pretrained=True)


def test_half_a_download_is_one_line(tmp_path):
    path = timm_folder(tmp_path, "test_efficientnet")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be loaded: .*; check that folder$"):
        build(path, pretrained=True)
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: .*; check that folder$"):
        build(path, pretrained=True)


def test_a_size_that_it_cannot_take_is_one_line(tmp_path):
    network = build(timm_folder(tmp_path, ONE_SIZE), pretrained=True)
    with pytest.raises(UserError, match="cannot be trained at 96 px .* choose another data.image_size"):
        check_sizes(network, {96: 2})


# From timm's names of MobileViT's parts to those of transformers, in this order.
RENAMED = [
    (r"^stages\.([01])\.", r"stages.\1.layer."),
    (r"^stages\.([2-4])\.0", r"stages.\1.downsampling_layer"),
    (r"^stages\.([2-4])\.1", r"stages.\1"),
    ("^stages", "mobilevit.encoder.layer"),
    ("^stem", "mobilevit.conv_stem"),
    ("^final_conv", "mobilevit.conv_1x1_exp"),
    (r"^head\.fc", "classifier"),
    ("conv1_1x1", "expand_1x1"),
    ("conv2_kxk", "conv_3x3"),
    ("conv3_1x1", "reduce_1x1"),
    (r"conv_1x1\.weight", "conv_1x1.convolution.weight"),
    ("conv_proj", "conv_projection"),
    ("conv_fusion", "fusion"),
    (r"\.conv\.", ".convolution."),
    (r"\.bn\.", ".normalization."),
    (r"transformer\.", "transformer.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.norm\.", ".layernorm."),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def renamed(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


@pytest.mark.parametrize("size", [128, 160])  # patches fit; and are scaled to fit
@torch.inference_mode()
def test_timms_mobilevit_and_that_of_transformers_give_the_same_scores(size):
    theirs = build("timm/mobilevit_s", size).timm_model.eval()
    for name, buffer in theirs.named_buffers():  # as after a training
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    ours, weights = build("apple/mobilevit-small", size).eval(), {}
    for name, weight in theirs.state_dict().items():
        if ".attn.qkv." in name:
            for part, share in zip(("query", "key", "value"), weight.chunk(3), strict=True):
                weights[renamed(name.replace("attn.qkv", f"attention.attention.{part}"))] = share
        else:
            weights[renamed(name)] = weight
    ours.load_state_dict(weights)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    logits = theirs(pixels)
    assert logits.std() > 1e-3
    torch.testing.assert_close(ours(pixel_values=pixels).logits, logits, rtol=1e-3, atol=1e-4)
