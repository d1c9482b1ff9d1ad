"""params.yaml as a validated schema; the only reader of params.yaml.

The values, with their units, are documented in params.yaml itself, which holds every key: the
schema has no defaults, so there is one place to look.
"""

import difflib
import io
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from image_classifier.core.errors import UserError, first_line, printable


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the full hash of a commit, which no one can move as they can a branch."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


# A user's name and password in an address, which end at its last @: a password may hold any sign. A file's has none.
PASSWORD = r"(?<!sqlite:)(?<!file:)(?<!/)//\S*@"
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
# Which sizes a network can take is tried before training: patches may be of 14, 16 or 32 pixels.
ImageSize = Annotated[int, Field(ge=32, le=1024)]
Name = Annotated[str, Field(min_length=1)]


def _processes(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("input should be auto, or a whole number from 1")


def _color(value: str) -> str:
    try:
        if len(ImageColor.getrgb(value)) == 3:
            return value
    except ValueError:
        pass
    raise ValueError("input should be a color: a name such as white, or #rrggbb")


def _unpinned(values: Any) -> Any:
    """A section without its revision, where it names a folder: a commit left over from the hub would say nothing."""
    names = [values.get(key) for key in ("source", "name")] if isinstance(values, dict) else []
    local = any(isinstance(name, str) and re.match(r"digits$|data/raw/|models/|[./]", name) for name in names)
    return values | {"revision": None} if local else values


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    source: Name
    revision: Name | None  # of the hub, None for a folder
    image_column: Name | None
    label_column: Name | None
    config: Name | None
    group: Name | None
    on_unreadable: Literal["fail", "skip"]
    on_duplicate: Literal["fail", "drop", "count"]
    on_contradiction: Literal["fail", "drop", "count"]
    image_size: ImageSize
    resize: Literal["stretch", "crop"]
    background: Annotated[str, AfterValidator(_color)]
    val_from: Literal["train", "test", "validation"]
    val_fraction: Fraction
    test_fraction: Fraction | None
    subset_size: Count | None
    normalization: Literal["imagenet", "checkpoint", "none"]


class Model(Section):
    name: Name
    revision: Name | None  # of the hub, None for a folder
    pretrained: bool
    freeze_backbone: bool
    unfreeze_blocks: Annotated[int, Field(ge=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)] | None


class Augmentation(Section):
    horizontal_flip: bool
    random_resized_crop: Annotated[float, Field(gt=0, le=1)] | None
    crop_padding: Annotated[float, Field(ge=0, le=0.5)]
    rotation: Annotated[float, Field(ge=0, le=180)]
    color_jitter: Annotated[float, Field(ge=0, le=1)]
    trivial_augment: bool
    mixup: Annotated[float, Field(ge=0)]
    cutmix: Annotated[float, Field(ge=0)]


class Training(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    use_compile: bool
    num_processes: Annotated[Any, AfterValidator(_processes)]
    num_epochs: Count
    batch_size: Count
    accumulate_batches: Count
    patience: Count | None
    class_weights: bool
    resolution_schedule: Annotated[list[ImageSize], Field(min_length=1)] | None
    fast_mode: bool
    augmentation: Augmentation
    optimizer: Literal["adam", "adamw", "muon", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    head_lr_factor: Annotated[float, Field(gt=0)]
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    decay_norms_and_biases: bool
    scheduler: Literal["none", "cosine", "one_cycle"]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)] | None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema_decay: Fraction | None
    batch_norm_images: Annotated[int, Field(ge=2)] | None  # batch norm has no variance of one


class Evaluation(Section):
    batch_size: Count


class Export(Section):
    min_agreement: Annotated[float, Field(ge=0, le=1)]
    max_relative_error: Annotated[float, Field(gt=0)]
    int8: bool
    int8_operators: Annotated[list[Literal["Conv", "Gemm", "MatMul"]], Field(min_length=1)]
    max_int8_loss: Annotated[float, Field(ge=0, le=1)]


class Mlflow(Section):
    experiment_name: Name
    model_name: Annotated[str, Field(pattern=r"^[^/:'\"]+$")] | None
    tracking_uri: Name | None


class Config(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None
    portable: bool
    data: Annotated[Data, BeforeValidator(_unpinned)]
    model: Annotated[Model, BeforeValidator(_unpinned)]
    training: Training
    evaluation: Evaluation
    export: Export
    mlflow: Mlflow

    def as_yaml(self) -> str:
        """All that decides a result, as params.yaml has it; where it is trained, and where MLflow is, do not."""
        text = io.StringIO()
        exclude: dict[str, Any] = {"mlflow": True, "training": {"device", "num_processes"}}
        YAML().dump(self.model_dump(exclude=exclude), text)
        return text.getvalue().strip()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if re.search(PASSWORD, self.mlflow.tracking_uri or ""):  # whose value is not to be shown
            raise ValueError("mlflow.tracking_uri holds a password: set MLFLOW_TRACKING_USERNAME and _PASSWORD instead")
        for size in self.training.resolution_schedule or []:
            if size > self.data.image_size:
                raise ValueError(
                    f"training.resolution_schedule: {size} is larger than data.image_size = {self.data.image_size}"
                )
        head_alone = self.model.freeze_backbone and not self.model.unfreeze_blocks
        if self.model.unfreeze_blocks and not self.model.freeze_backbone:
            raise ValueError("model.unfreeze_blocks needs model.freeze_backbone = true: else every block is trained")
        if self.training.layer_lr_decay != 1 and head_alone:
            raise ValueError("training.layer_lr_decay does nothing where the head alone is trained: set it to 1")
        if self.training.optimizer == "muon" and head_alone:
            raise ValueError("muon leaves the head, all that is trained here, to adamw: set training.optimizer = adamw")
        if self.portable:
            if self.num_threads is None:
                raise ValueError("portable = true needs num_threads: another number changes the last digits")
            if self.training.precision != "fp32":
                raise ValueError("portable = true needs training.precision = fp32: not every processor has the others")
            if self.training.device != "cpu":
                raise ValueError("portable = true needs training.device = cpu: GPUs have last digits of their own")
        return self


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check `path`.

    Raises UserError: one line per problem, each naming the file, the key, the value and what is allowed.
    """
    path = Path(path)
    try:
        # The reader that DVC itself uses, so that both see the same values; it refuses repeated keys.
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing in {Path.cwd()}: run from the root of the repository") from None
    except (YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', first_line(error))}") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, problem) for problem in error.errors())) from None


def _explain(path: Path, problem: ErrorDetails) -> str:
    *sections, key = [str(part) for part in problem["loc"]] or [""]
    name = printable(".".join([*sections, key]))
    if problem["type"] == "extra_forbidden":
        schema: Any = Config
        for section in sections:
            schema = schema.model_fields[section].annotation
        close = difflib.get_close_matches(key, schema.model_fields, n=1)
        return f"{path}: {name} is not a known key" + (f"; did you mean {close[0]}?" if close else "")
    if problem["type"] == "missing":
        return f"{path}: {name} is missing; every key must be present (null where unset)"
    allowed = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:  # about the whole file, or about several keys
        return f"{path}: {'it holds no keys' if problem['type'] == 'model_type' else allowed}"
    return f"{path}: {name} = {problem['input']!r:.80}: {allowed[0].lower()}{allowed[1:]}"
