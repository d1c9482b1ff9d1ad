"""A trained network as a Hugging Face folder."""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from image_classifier.core import files
from image_classifier.core.config import Model
from image_classifier.core.errors import UserError, first_line, is_out_of_memory
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.model.normalize import Normalize, image_processor, normalization_of


def save(
    folder: Path, network: PreTrainedModel, normalize: Normalize, resize: Resize, model: Model | None = None
) -> None:
    """Write a Hugging Face folder: config.json, model.safetensors, preprocessor_config.json.

    With them goes the license of the pretrained weights, where `model` names a folder that holds one.
    """
    network.save_pretrained(folder)
    files.write_json(folder / "preprocessor_config.json", image_processor(normalize, resize))
    if model is not None and model.pretrained:
        for path in (Path(model.name, name) for name in ("LICENSE", "NOTICE")):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    files.seal(folder)


def load(folder: str | Path, stage: str = "train") -> tuple[PreTrainedModel, Normalize, Resize]:
    """Read what `save` wrote: the network in eval mode, its normalization and its way to resize.

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
        if is_out_of_memory(error):
            raise
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
        ("images by", resize, shards.resize),
        ("the classes", list(network.config.id2label.values()), shards.class_names),
    ):
        if ours != theirs:
            raise UserError(f"models/checkpoint has {what} {ours}, the shards {theirs}: run `dvc repro train`")
