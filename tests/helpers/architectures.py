"""Every architecture behind transformers' AutoModelForImageClassification, small enough for a test."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageClassification

from image_classifier.core.config import Model

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "image_size": 64,
}
FOUR = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 64, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
PVT = {"image_size": 64, **FOUR, "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
TINY = {
    "beit": VIT,
    "bit": {"embedding_size": 16, **FOUR, "num_groups": 2},
    "clip": {"vision_config": VIT, "projection_dim": 32},
    "convnext": FOUR,
    "convnextv2": FOUR,
    "cvt": {"embed_dim": [16, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 2]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": {**VIT, "mlp_ratio": 2},
    "dinov2_with_registers": {**VIT, "mlp_ratio": 2},
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": 64},
    "focalnet": {
        "image_size": 64,
        "embed_dim": 16,
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hgnet_v2": {
        "embedding_size": 16,
        "depths": [1, 1],
        "hidden_sizes": [32, 64],
        "stem_channels": [3, 16, 16],
        "stage_in_channels": [16, 32],
        "stage_mid_channels": [16, 16],
        "stage_out_channels": [32, 64],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_light_block": [False, False],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [2, 2],
    },
    "hiera": {
        "embed_dim": 16,
        "image_size": [64, 64],
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 4],
        "num_query_pool": 2,
    },
    "ijepa": VIT,
    "levit": {
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "metaclip_2": {"vision_config": VIT, "projection_dim": 32},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {
        "image_size": 32,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
        "expand_ratio": 2.0,
    },
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": 64},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 16,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 1,
        "num_cross_attention_heads": 1,
        "image_size": 64,
    },
    "poolformer": {"hidden_sizes": [16, 16, 32, 32], "depths": [2, 2, 2, 2]},
    "pvt": {**PVT, "sequence_reduction_ratios": [4, 2, 1, 1]},
    "pvt_v2": PVT,
    "regnet": {"embedding_size": 16, **FOUR, "groups_width": 8},
    # Below 16 channels oneDNN's strided 1x1 convolutions write past their memory (uxlfoundation/oneDNN, issue 6035).
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "layer_type": "basic"},
    "segformer": {**FOUR, "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 16},
    "siglip": {"vision_config": VIT},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": {},
    "vit": VIT,
    "vit_msn": VIT,
}
# Those that take their own size alone, and no resolution_schedule.
ONE_SIZE = {"clip", "levit", "metaclip_2", "pvt"}
# Those whose export `make test` tries too: what people fine-tune, and what once failed.
COMMON = {"clip", "convnext", "dinov2", "efficientnet", "mobilenet_v2", "poolformer", "resnet", "siglip", "swin", "vit"}

# Four that differ most: convolutions with attention, attention alone, batch norm, dropout in the head.
KINDS = ("mobilevit", "vit", "resnet", "efficientnet")


def settings(name: str | Path, **changes) -> Model:
    """The model section of params.yaml, from scratch unless a change says otherwise."""
    values = {"revision": None, "pretrained": False, "freeze_backbone": False, "unfreeze_blocks": 0, "dropout": None}
    return Model(name=str(name), **values | changes)


def hub_folder(path: Path, kind: str, num_labels: int = 1000, weights: str | None = None) -> Path:
    """A model as the hub serves it, with a head of its own classes; `weights` names the file's format."""
    tiny = AutoConfig.for_model(**{**TINY[kind], "model_type": kind, "num_labels": num_labels})
    torch.manual_seed(1)
    network = AutoModelForImageClassification.from_config(tiny)
    path.mkdir(parents=True, exist_ok=True)
    if weights == "safetensors":
        network.save_pretrained(path)
    else:
        tiny.save_pretrained(path)
    if weights == "bin":
        torch.save(network.state_dict(), path / "pytorch_model.bin")
    return path


def timm_folder(path: Path, kind: str, num_classes: int = 5) -> Path:
    """A model as timm saves it for the hub: weights without a prefix, and a config.json of its own."""
    torch.manual_seed(1)
    network = timm.create_model(kind, num_classes=num_classes)
    path.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    own = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "num_classes": num_classes, "input_size": [3, 160, 160]}
    told = {"architecture": kind, "num_classes": num_classes, "pretrained_cfg": own}
    told["label_names"] = [f"theirs {number}" for number in range(num_classes)]
    (path / "config.json").write_text(json.dumps(told))
    return path
