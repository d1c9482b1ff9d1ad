"""Build, load and save Hugging Face classifiers; the only importer of transformers."""

import copy
import inspect
from pathlib import Path

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
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from image_classifier import files, hub
from image_classifier.config import Model, is_commit
from image_classifier.errors import UserError, first_line
from image_classifier.preprocess import IMAGENET_MEAN, IMAGENET_STD, Normalize, Resize, normalization_of, processor
from image_classifier.shards import ShardReader

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

# Architectures that can be built without asking the hub, by transformers' own defaults for the
# type. Any other type (resnet, vit, efficientnet, ...) can be named by itself.
KNOWN_ARCHITECTURES = {"apple/mobilevit-small": "mobilevit"}

# Classifiers of transformers that have no place in this pipeline, and why.
OUTSIDE = {
    "dinat": "needs the package natten",
    "pp_lcnet": "gives no logits in this version of transformers",
    "imagegpt": "takes color clusters, not pixels",
    "shieldgemma2": "is a language model of 4 billion parameters",
    "siglip2": "takes patches of images of any shape (NaFlex); its checkpoints of one size are of type siglip",
}


def build(model: Model, class_names: list[str], image_size: int, seed: int) -> PreTrainedModel:
    """A classifier with one freshly seeded output per class, on the CPU, float32, channels_last.

    Raises UserError: the model cannot be found here, is no image classifier, or takes another size.
    """
    torch.manual_seed(seed)
    # The number as well: some configurations keep their own in spite of the names.
    ids = {name: label for label, name in enumerate(class_names)}
    labels = {"num_labels": len(ids), "id2label": dict(enumerate(class_names)), "label2id": ids}
    try:
        network = _pretrained(model, labels) if model.pretrained else _from_scratch(model, labels, image_size)
    except UserError:
        raise
    except Exception as error:  # of many libraries: files, pickles, HTTP, transformers' own checks
        raise _cannot_load(model, error) from None
    for module in network.modules():
        if isinstance(module, nn.Dropout) and model.dropout is not None:
            module.p = model.dropout
    for parameter in network.parameters():
        if not parameter.isfinite().all():
            raise UserError(f"model.name = {model.name} has weights that are not finite: fetch it again")
    if (channels := getattr(_vision(network), "num_channels", 3)) != 3:
        raise UserError(f"model.name = {model.name} takes images of {channels} channels, and here all are RGB")
    own_size = _own_size(network)
    if _takes_positions(network) and own_size not in (image_size, [image_size, image_size]):
        raise UserError(
            f"model.name = {model.name} takes pictures of {own_size} px: set data.image_size to that, not {image_size}"
        )
    if model.freeze_backbone:
        _freeze(network, _head(network, model), model.unfreeze_blocks)
    return network.to(memory_format=torch.channels_last)


def _pretrained(model: Model, labels: dict[str, dict]) -> PreTrainedModel:
    _require_commit(model)
    if not Path(model.name).is_dir():
        print(f"train: looking for {model.name} in the cache and on the Hugging Face hub", flush=True)
    kind = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False).model_type
    _check_kind(kind, model)
    network, report = AutoModelForImageClassification.from_pretrained(
        model.name,
        revision=model.revision,
        trust_remote_code=False,  # left open, transformers would ask on a terminal
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # the head: its classes are ours
        output_loading_info=True,
        **labels,
    )
    head = _head(network, model)
    missing = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])} - head)
    if missing:
        raise ValueError(
            f"its weights are of another architecture than its config.json: {len(missing)} of the backbone's "
            f"are missing, such as {missing[0]}."
        )
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in head:
            # Also where the checkpoint happens to have as many classes as we have: they are other classes.
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _head(network: PreTrainedModel, model: Model) -> set[str]:
    """The parameters that belong to the classifier's head: what lies outside the backbone, or the last layer alone.

    Raises UserError: there is no layer with one output per class.
    """
    outputs = network.config.num_labels
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not layers:
        raise UserError(f"model.name = {model.name} has no linear layer with {outputs} outputs to be its head")
    prefix = f"{network.base_model_prefix}."
    names = {name for name, _ in network.named_parameters()}
    outside = {name for name in names if not name.startswith(prefix)}
    if network.base_model is not network and f"{layers[-1]}.weight" in outside:
        return outside
    return {name for name in names if name.startswith(f"{layers[-1]}.")}


def _from_scratch(model: Model, labels: dict[str, dict], image_size: int) -> PreTrainedModel:
    kind = KNOWN_ARCHITECTURES.get(model.name, model.name)
    if kind in CONFIG_MAPPING:
        config = AutoConfig.for_model(kind, **labels)
    else:
        _require_commit(model)
        config = AutoConfig.from_pretrained(model.name, revision=model.revision, trust_remote_code=False, **labels)
    _check_kind(config.model_type, model)
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


def _check_kind(kind: str, model: Model) -> None:
    fault = OUTSIDE.get(kind)
    if kind not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        fault = "is no image classifier of transformers"
    if fault:
        raise UserError(f"model.name = {model.name} cannot be trained here: {kind} {fault}; choose another model")


def _require_commit(model: Model) -> None:
    if Path(model.name).is_dir():
        return
    if model.name.startswith(("models/", "data/", ".", "/")):
        raise UserError(
            f"model.name = {model.name}: there is no such folder; a run in a folder of its own (--temp, --queue) sees "
            "one under models/pretrained/ once `dvc add` has put it under DVC and its .dvc file is committed"
        )
    if not is_commit(model.revision):
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


def _freeze(network: PreTrainedModel, head: set[str], last_blocks: int) -> None:
    """Let only the head, the last blocks, and what is defined after them change."""

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # The largest list of modules is that of the blocks: others are of their parts, or of patch embeddings.
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    blocks = max(lists, key=size, default=nn.ModuleList())
    if last_blocks > len(blocks):
        raise UserError(f"model.unfreeze_blocks = {last_blocks}, but the backbone has {len(blocks)} blocks")
    first = next(blocks[-last_blocks].parameters()) if last_blocks else None
    reached = False
    for name, parameter in network.named_parameters():  # in order of definition
        reached = reached or parameter is first
        parameter.requires_grad_(reached or name in head)


def _takes_positions(network: PreTrainedModel) -> bool:
    """Whether position embeddings tie the network to one size of picture, as in ViT."""
    return "interpolate_pos_encoding" in inspect.signature(network.forward).parameters


def _own_size(network: PreTrainedModel) -> int | list[int] | None:
    """The size of picture that the network was made for, if any; SigLIP and its like keep it one level deeper."""
    return getattr(_vision(network), "image_size", None)


def _vision(network: PreTrainedModel) -> PretrainedConfig:
    return getattr(network.config, "vision_config", network.config)


def check_sizes(network: PreTrainedModel, batches: dict[int, int]) -> None:
    """Try a batch of so many images at each size (pixels -> images), in the mode that the network's parts are in.

    Raises UserError: the network cannot take it, or gives no score for each class.
    """
    trial, name = copy.deepcopy(network), type(network).__name__  # batch norm's statistics change in it
    for size, count in sorted(batches.items()):
        try:
            with torch.no_grad():
                pixels = torch.zeros(count, 3, size, size)
                outputs = trial(pixel_values=pixels, **forward_options(trial, size)).logits.shape[-1]
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:  # of any architecture
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"training.batch_size leaves a batch of one image, on which batch norm in {name} cannot train at "
                    f"{size} px: set it to 3 or more"
                ) from None
            raise UserError(
                f"{name} cannot be trained at {size} px ({first_line(error)}): choose another data.image_size, or "
                "set training.resolution_schedule=null"
            ) from None
        if outputs != network.config.num_labels:
            raise UserError(
                f"{name} gives {outputs} scores for {network.config.num_labels} classes: choose another model"
            )


def forward_options(network: PreTrainedModel, size: int) -> dict[str, bool]:
    """What the network's forward must be told when pictures of another size than its own come in."""
    if _takes_positions(network) and _own_size(network) != size:
        return {"interpolate_pos_encoding": True}
    return {}


def normalization(name: str, model: Model) -> Normalize:
    """The `data.normalization` setting as a module.

    Raises UserError: the checkpoint's own cannot be read or done.
    """
    if name == "imagenet":
        return Normalize(IMAGENET_MEAN, IMAGENET_STD)
    if name == "none":
        return Normalize()
    _require_commit(model)
    try:
        found = AutoImageProcessor.from_pretrained(model.name, revision=model.revision, trust_remote_code=False)
        return normalization_of(found.to_dict())
    except Exception as error:
        raise UserError(
            f"data.normalization = checkpoint: {model.name} has no preprocessor_config.json that can be followed "
            f"({first_line(error)}); choose imagenet or none"
        ) from None


def save(folder: Path, network: PreTrainedModel, normalize: Normalize, resize: Resize) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors, preprocessor_config.json."""
    network.save_pretrained(folder)
    files.write_json(folder / "preprocessor_config.json", processor(normalize, resize))
    files.seal(folder)


def load(folder: str | Path, stage: str = "train") -> tuple[PreTrainedModel, Normalize, Resize]:
    """Read what `save` wrote: the network in eval mode, its normalisation and its way to resize.

    Raises UserError: the folder, made by `stage`, is missing, incomplete or damaged.
    """
    folder = Path(folder)
    remedy = f"run `dvc repro {stage}` to make it again"
    files.check_seal(folder, remedy)
    processing = files.read_json(folder / "preprocessor_config.json", remedy)
    try:
        network = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded ({first_line(error)}): {remedy}") from None
    if "background" not in processing:
        raise UserError(f"{folder} was made by an older version of this project: {remedy}")
    mode = "crop" if processing["do_center_crop"] else "stretch"
    resize = Resize(processing["crop_size"]["height"], mode, processing["background"])
    return network.to(memory_format=torch.channels_last).eval(), normalization_of(processing), resize


def check_fits(network: PreTrainedModel, resize: Resize, shards: ShardReader) -> None:
    """Refuse shards that the checkpoint was not trained for.

    Raises UserError: the size, the way to it, or the class names differ.
    """
    for what, ours, theirs in (
        ("pictures by", resize, shards.resize),
        ("the classes", list(network.config.id2label.values()), shards.class_names),
    ):
        if ours != theirs:
            raise UserError(f"models/checkpoint has {what} {ours}, the shards {theirs}: run `dvc repro train`")
