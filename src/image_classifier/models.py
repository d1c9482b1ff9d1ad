"""Build, load and save Hugging Face classifiers; the only importer of transformers."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from image_classifier import files
from image_classifier.config import Model
from image_classifier.errors import UserError
from image_classifier.preprocess import Normalize, from_processor, processor
from image_classifier.shards import ShardReader

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

# Architectures that can be built without asking the hub: transformers' own defaults for the type.
KNOWN_ARCHITECTURES = {"apple/mobilevit-small": "mobilevit"}


def build(model: Model, class_names: list[str], seed: int) -> PreTrainedModel:
    """A classifier with one freshly seeded output per class, on the CPU, float32, channels_last.

    Raises:
        UserError: the model cannot be found here, or is no image classifier.
    """
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(class_names)), "label2id": {n: i for i, n in enumerate(class_names)}}
    network = _pretrained(model, labels) if model.pretrained else _from_scratch(model, labels)
    for parameter in network.parameters():
        if not parameter.isfinite().all():
            raise UserError(f"model.name = {model.name} has weights that are not finite: fetch it again")
    if model.freeze_backbone:
        for parameter in network.base_model.parameters():
            parameter.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def _pretrained(model: Model, labels: dict[str, dict]) -> PreTrainedModel:
    try:
        return AutoModelForImageClassification.from_pretrained(
            model.name,
            revision=model.revision,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the head: its classes are ours
            **labels,
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(model, error) from None


def _from_scratch(model: Model, labels: dict[str, dict]) -> PreTrainedModel:
    if model.name in KNOWN_ARCHITECTURES:
        config = AutoConfig.for_model(KNOWN_ARCHITECTURES[model.name], **labels)
    else:
        try:
            config = AutoConfig.from_pretrained(model.name, revision=model.revision, **labels)
        except (OSError, ValueError) as error:
            raise _cannot_load(model, error) from None
    network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # He et al. 2015 (arXiv 1502.01852). Hugging Face's std of 0.02 suits fine-tuning alone:
            # from scratch the signal dies out on its way through the layers.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _cannot_load(model: Model, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"model.name = {model.name} (revision {model.revision or 'not set'}) cannot be loaded: {reason} "
        "Without the hub, set model.name to a local folder, or model.pretrained to false to train "
        f"one of {', '.join(KNOWN_ARCHITECTURES)} from scratch"
    )


def save(folder: Path, network: PreTrainedModel, normalize: Normalize, image_size: int) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors, preprocessor_config.json."""
    network.save_pretrained(folder)
    files.write_json(folder / "preprocessor_config.json", processor(normalize, image_size))


def load(folder: str | Path) -> tuple[PreTrainedModel, Normalize, int]:
    """Read what `save` wrote: the network in eval mode, its normalisation and its image size.

    Raises:
        UserError: the folder is missing, incomplete or damaged.
    """
    folder = Path(folder)
    remedy = "run `dvc repro train` to make it again"
    processing = files.read_json(folder / "preprocessor_config.json", remedy)
    files.read_json(folder / "config.json", remedy)
    try:
        network = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded ({str(error).splitlines()[0]}): {remedy}") from None
    return network.to(memory_format=torch.channels_last).eval(), *from_processor(processing)


def check_fits(network: PreTrainedModel, image_size: int, shards: ShardReader) -> None:
    """Refuse shards that the checkpoint was not trained for.

    Raises:
        UserError: the image size or the class names differ.
    """
    for what, ours, theirs in (
        ("an image size of", image_size, shards.image_size),
        ("the classes", class_names(network.config), shards.class_names),
    ):
        if ours != theirs:
            raise UserError(f"models/checkpoint has {what} {ours}, the shards {theirs}: run `dvc repro train`")


def class_names(config: PretrainedConfig) -> list[str]:
    """The classes in the order of the network's outputs."""
    return [config.id2label[index] for index in range(config.num_labels)]
