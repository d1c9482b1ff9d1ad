"""Build a Hugging Face classifier, from pretrained weights or from scratch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from image_classifier.core import config, hub
from image_classifier.core.config import Model
from image_classifier.core.errors import UserError, first_line, is_out_of_memory
from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, normalization_of
from image_classifier.training import timm_models
from image_classifier.training.layers import freeze, head_parameters
from image_classifier.training.sizes import own_size, takes_positions, vision_config

# Architectures that can be built without asking the hub, by transformers' own defaults for the
# type. Any other type (resnet, vit, efficientnet, ...) can be named by itself.
KNOWN_ARCHITECTURES = {"apple/mobilevit-small": "mobilevit"}
LARGEST = 2**31 - 2**24  # bytes of weights in float32: protobuf's limit, less what else an ONNX file holds
# Classifiers of transformers that have no place in this pipeline, and why.
OUTSIDE = {
    "dinat": "needs the package natten",
    "pp_lcnet": "gives no logits in this version of transformers",
    "imagegpt": "takes color clusters, not pixels",
    "shieldgemma2": "is a language model of 4 billion parameters",
    "siglip2": "takes patches of images of any shape (NaFlex); its checkpoints of one size are of type siglip",
}


def build_network(model: Model, class_names: list[str], image_size: int, seed: int) -> PreTrainedModel:
    """A classifier with one freshly seeded output per class, on the CPU, float32, channels_last.

    Raises UserError: the model cannot be found here, is no image classifier, or takes another size.
    """
    torch.manual_seed(seed)
    # The number as well: some configurations keep their own in spite of the names.
    ids = {name: label for label, name in enumerate(class_names)}
    labels = {"num_labels": len(ids), "id2label": dict(enumerate(class_names)), "label2id": ids}
    labels["problem_type"] = None  # of a checkpoint for several labels, say; None is one label per image
    try:
        network = _pretrained(model, labels) if model.pretrained else _from_scratch(model, labels, image_size)
    except UserError:
        raise
    except Exception as error:  # of many libraries: files, pickles, HTTP, transformers' own checks
        if is_out_of_memory(error):
            raise
        raise _cannot_load(model, error) from None
    for module in network.modules():
        if isinstance(module, nn.Dropout) and model.dropout is not None:
            module.p = model.dropout
        for name in ("dropout", "attention_dropout"):  # attention layers keep their rate as a number
            if type(getattr(module, name, None)) in (int, float) and model.dropout is not None:
                setattr(module, name, model.dropout)
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None and module.momentum > 0.5:
            # Counted as TensorFlow does (MobileNet, EfficientNet): the statistics would be of the last batch alone.
            module.momentum = max(1 - module.momentum, 0.01)  # at less they would take thousands of steps to settle
        if hasattr(module, "set_shift_and_window_size"):  # Swin would stop shifting for good after a small image
            first = {"shift_size": module.shift_size, "window_size": module.window_size}
            module.register_forward_pre_hook(lambda layer, _, first=first: layer.__dict__.update(first))
    if network.config.model_type == timm_models.TYPE:
        timm_models.settle(network, class_names, model.dropout)
    if (size := 4 * sum(parameter.numel() for parameter in network.parameters())) > LARGEST:
        raise UserError(f"model.name = {model.name}: {size / 2**30:.1f} GiB of weights, an ONNX file holds under 2")
    for parameter in network.parameters():
        if not parameter.isfinite().all():
            raise UserError(f"model.name = {model.name} has weights that are not finite: fetch it again")
    if (channels := getattr(vision_config(network), "num_channels", 3)) != 3:
        raise UserError(f"model.name = {model.name} takes images of {channels} channels, and here all are RGB")
    native_size = own_size(network)
    if takes_positions(network) and native_size not in (image_size, [image_size, image_size]):
        raise UserError(
            f"model.name = {model.name} takes images of {native_size} px: set data.image_size to that, not {image_size}"
        )
    if model.freeze_backbone:
        freeze(network, head_parameters(network), model.unfreeze_blocks)
    return network.to(memory_format=torch.channels_last)


def _pretrained(model: Model, labels: dict[str, Any]) -> PreTrainedModel:
    if model.name.startswith(timm_models.PREFIX) and not Path(model.name).is_dir():
        timm_models.architecture(model.name)  # a typo is told at once, with names like it
    require_commit(model)
    if not Path(model.name).is_dir():
        print(f"train: looking for {model.name} in the cache and on the Hugging Face hub", flush=True)
    elif Path("models/pretrained") not in Path(model.name).parents:
        print(f"warning: a change in {model.name} reruns nothing, DVC watches models/pretrained: move it there")
    config = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
    _check_kind(config, model)
    network, report = AutoModelForImageClassification.from_pretrained(
        model.name,
        revision=model.revision,
        trust_remote_code=False,  # left open, transformers would ask on a terminal
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # the head: its classes are ours
        output_loading_info=True,
        **labels,
    )
    head = head_parameters(network)
    missing = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])} - head)
    if missing:
        raise ValueError(
            f"its weights are of another architecture than its config.json: {len(missing)} of the backbone's "
            f"are missing, such as {missing[0]}."
        )
    # Also where the checkpoint happens to have as many classes as we have: they are other classes.
    if network.config.model_type == timm_models.TYPE:
        network.timm_model.reset_classifier(network.config.num_labels)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in head:
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _from_scratch(model: Model, labels: dict[str, Any], image_size: int) -> PreTrainedModel:
    kind = KNOWN_ARCHITECTURES.get(model.name, model.name)
    if kind in CONFIG_MAPPING:
        config = AutoConfig.for_model(kind, **labels)
    elif kind.startswith(timm_models.PREFIX):
        config = timm_models.configure(kind, labels, image_size)
    else:
        require_commit(model)
        config = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False, **labels)
    _check_kind(config, model)
    if config.model_type == timm_models.TYPE:
        return timm_models.from_scratch(config)
    vision = getattr(config, "vision_config", config)
    if (own := getattr(vision, "image_size", None)) is not None:
        vision.image_size = [image_size, image_size] if isinstance(own, list | tuple) else image_size
    classes = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]  # the first, where there are heads to choose from
    network = (classes[0] if isinstance(classes, tuple) else classes)._from_config(config, dtype=torch.float32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # He et al. 2015 (arXiv 1502.01852). Hugging Face's std of 0.02 suits fine-tuning alone:
            # from scratch the signal dies out on its way through the layers.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _check_kind(config: PretrainedConfig, model: Model) -> None:
    if config.model_type == timm_models.TYPE:
        timm_models.architecture(config.architecture)
    kind = config.model_type
    fault = OUTSIDE.get(kind)
    if kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        fault = "is no image classifier of transformers"
    if fault:
        raise UserError(f"model.name = {model.name} cannot be trained here: {kind} {fault}; choose another model")


def require_commit(model: Model) -> None:
    if Path(model.name).is_dir():
        return
    if model.name.startswith(("models/", "data/", ".", "/")):
        raise UserError(
            f"model.name = {model.name}: there is no such folder (`image-classifier weights` writes those that come as "
            "a package); a run in a folder of its own (--temp, --queue) sees one under models/pretrained/ once "
            "`dvc add` has put it under DVC and its .dvc file is committed"
        )
    if not config.is_commit(model.revision):
        raise UserError(
            f"model.name = {model.name} needs model.revision, the commit of the model (40 hex digits, "
            f"from the Hub's list of commits), not {model.revision}; or name a local folder"
        )


def _cannot_load(model: Model, error: Exception) -> UserError:
    if Path(model.name).is_dir():
        return UserError(
            f"model.name = {model.name} cannot be loaded: {first_line(error).rstrip('.')}; check that folder"
        )
    revision = f" --revision {model.revision}" if model.revision else ""
    local = f"models/pretrained/{model.name.rpartition('/')[2]}"
    remedy = (
        f"without the hub, run `hf download {model.name}{revision} --local-dir {local}` where it can be reached and "
        f"set model.name={local} here; model.pretrained=false trains {', '.join(KNOWN_ARCHITECTURES)} from scratch"
    )
    why = hub.reason(error, "model", remedy)
    return UserError(f"model.name = {model.name} (revision {model.revision}) cannot be loaded: {why}")


def input_normalization(name: str, model: Model) -> Normalize:
    """The `data.normalization` setting as a module.

    Raises UserError: the checkpoint's own cannot be read or done.
    """
    if name == "imagenet":
        return Normalize(IMAGENET_MEAN, IMAGENET_STD)
    if name == "none":
        return Normalize()
    require_commit(model)
    try:
        found = AutoImageProcessor.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
        if hasattr(found, "data_config"):  # a timm model's
            return Normalize(found.data_config["mean"], found.data_config["std"])
        return normalization_of(found.to_dict())
    except Exception as error:
        raise UserError(
            f"data.normalization = checkpoint: {model.name} has no preprocessor_config.json that can be followed "
            f"({first_line(error)}); choose imagenet or none"
        ) from None
