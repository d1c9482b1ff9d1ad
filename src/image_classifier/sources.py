"""Where labelled pictures come from, each source as a `datasets.DatasetDict`.

Every source has the columns `image` (an Image feature, not decoded: the file's bytes or path),
`label` (a ClassLabel with names) and `row` ("row 7 of train"), whatever they were called before,
and the splits `train` and, where the source has them, `validation` and `test`.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from huggingface_hub import constants as hub
from PIL import Image
from pyarrow import parquet

from image_classifier.config import Data, is_commit
from image_classifier.errors import UserError, first_line
from image_classifier.runtime import repository

LOCAL = "data/raw/"
SPLITS = ("train", "validation", "test")

datasets.disable_progress_bars()


def load(data: Data, scratch: Path) -> datasets.DatasetDict:
    """Load `data.source`; the pictures stay undecoded, and tables of them in `scratch` as long as the result lives.

    Raises UserError: the source is missing, empty, or not a set of labelled pictures.
    """
    if data.source == "digits":
        source = _digits()
    elif data.source.startswith(LOCAL):
        source = _local(Path(data.source), scratch)
    else:
        source = _hub(data)
    source = _standard(source, data)
    _check_labels(source, data.source)
    return source


def class_names(dataset: datasets.Dataset) -> list[str]:
    """The names of the classes, in the order of their labels."""
    return dataset.features["label"].names


def _digits() -> datasets.DatasetDict:
    """The 1,797 handwritten digits, 8x8 grey, that ship inside scikit-learn.

    Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # 17 grey levels to 256
    names = [str(digit) for digit in digits.target_names]
    return datasets.DatasetDict({"train": _table([Image.fromarray(image) for image in pixels], digits.target, names)})


def _table(images: list, labels: list | np.ndarray, names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _local(folder: Path, scratch: Path) -> datasets.DatasetDict:
    """Parquet in the layout `datasets` reads, or pictures in one sub-folder per class."""
    if ".." in folder.parts:
        raise UserError(f"data.source = {folder} leaves {LOCAL}: name a folder inside it")
    if not folder.is_dir():
        if repository().resolve() != Path.cwd() and (repository() / folder).is_dir():
            raise UserError(
                f"data.source = {folder} is in the workspace but this run, in a folder of its own, cannot see it: "
                f"put it under DVC first: `dvc add {folder}`, then commit {folder}.dvc"
            )
        raise UserError(f"data.source = {folder}: there is no such folder")
    if any(folder.rglob("*.parquet")):
        what, options = f"data.source = {folder}", {"cache_dir": str(scratch)}
        _check_tables(folder, _loaded(str(folder), what, load=datasets.load_dataset_builder, **options))
        return _loaded(str(folder), what, **options)
    present = sorted(entry.name for entry in _visible(folder))
    if not present:
        raise UserError(f"data.source = {folder} is empty: it must hold parquet files, or one sub-folder per class")
    # Split folders are told from classes that happen to be called "test" by holding folders themselves.
    splits = {
        name: folder / name
        for name in present
        if name in SPLITS and (folder / name).is_dir() and any(map(Path.is_dir, _visible(folder / name)))
    }
    if splits and len(splits) < len(present):
        odd = next(name for name in present if name not in splits)
        raise UserError(f"{folder} holds the splits {', '.join(splits)} and also {odd}: remove it or rename it")
    splits = splits or {"train": folder}
    names = sorted({entry.name for root in splits.values() for entry in _visible(root)})
    return datasets.DatasetDict({name: _class_folders(root, names) for name, root in splits.items()})


def _check_tables(folder: Path, builder: datasets.DatasetBuilder) -> None:
    """Refuse files elsewhere, which a README.md may name, and tables that number the same classes otherwise.

    `datasets` gives the class names of the first table to all of them.
    """
    known: dict[str, datasets.ClassLabel] = {}
    for file in chain.from_iterable((builder.config.data_files or {}).values()):
        path = Path(os.path.abspath(file))
        if not path.is_relative_to(folder.absolute()):
            raise UserError(f"data.source = {folder} takes {file} from elsewhere: its files must lie in it")
        features: dict[str, Any] = {}
        with suppress(pyarrow.ArrowInvalid):  # no parquet, or damaged: loading it will say so
            features = datasets.Features.from_arrow_schema(parquet.read_schema(path))
        for name, feature in features.items():
            if isinstance(feature, datasets.ClassLabel) and feature != known.setdefault(name, feature):
                raise UserError(f"data.source = {folder}: {path.name} numbers its classes otherwise than other tables")


def _class_folders(root: Path, names: list[str]) -> datasets.Dataset:
    images, labels = [], []
    for folder in _visible(root):
        if not folder.is_dir():
            raise UserError(f"{folder} is a file among the folders of the classes: remove it, or sort it into a class")
        for path in _visible(folder):
            if path.is_dir():
                raise UserError(f"{path} is a folder inside a class: {root} must hold one folder per class, no deeper")
            images.append({"bytes": None, "path": str(path)})
            labels.append(names.index(folder.name))
    return _table(images, labels, names)


def _visible(folder: Path) -> Iterator[Path]:
    """What a folder holds, sorted, without hidden files such as .gitignore."""
    return (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def _hub(data: Data) -> datasets.DatasetDict:
    what = f"data.source = {data.source}"
    if not is_commit(data.revision):
        raise UserError(
            f"{what} needs data.revision, the commit of the dataset (40 hex digits, from the Hub's list of commits), "
            f"not {data.revision}; a local folder begins with {LOCAL}"
        )
    fetch = f"hf download --repo-type dataset {data.source} --revision {data.revision} --local-dir {LOCAL}NAME"
    remedy = f"; without the hub, run `{fetch}` where it can be reached and set data.source={LOCAL}NAME here"
    print(f"prepare: looking for {data.source} in the cache and on the Hugging Face hub", flush=True)
    source = _loaded(data.source, f"{what} at {data.revision}", remedy, revision=data.revision)
    # Without the hub `datasets` serves what it cached last, of any commit; its folder is named after that.
    cached = {Path(file["filename"]).parent.name for rows in source.values() for file in rows.cache_files}
    if cached != {data.revision}:
        raise UserError(f"{what} at {data.revision}: without the hub, the cache gave {', '.join(cached)}{remedy}")
    return source


def _loaded(path: str, what: str, remedy: str = "", load: Callable = datasets.load_dataset, **options) -> Any:
    try:
        return load(path, **options)
    except Exception as error:  # of many libraries: files, parquet, HTTP
        raise UserError(f"{what} cannot be loaded: {first_line(error.__cause__ or error)}{remedy}") from None


def _standard(source: datasets.DatasetDict, data: Data) -> datasets.DatasetDict:
    """The same pictures under the standard names of columns and splits."""
    if "train" not in source:
        raise UserError(f"data.source = {data.source} has no train split, only {', '.join(source)}")
    features = source["train"].features
    for name, split in source.items():
        if name in SPLITS and split.features != features:
            raise UserError(f"data.source = {data.source}: {name} and train differ in columns or class names")
    image = _column(data.image_column, "data.image_column", datasets.Image, features)
    label = _column(data.label_column, "data.label_column", datasets.ClassLabel, features)
    source = datasets.DatasetDict({name: source[name] for name in SPLITS if name in source})
    for name, rows in source.items():
        if rows.data.column(label).null_count:
            raise UserError(f"data.source = {data.source}: rows of {name} have no {label}")
    source = source.select_columns([image, label]).rename_columns({image: "image", label: "label"})
    source = source.cast_column("image", datasets.Image(decode=False))
    if not isinstance(source["train"].features["label"], datasets.ClassLabel):
        source = _named(source)
    for name, rows in source.items():
        source[name] = rows.add_column("row", [f"row {number} of {name}" for number in range(len(rows))])
    return source


def _column(chosen: str | None, key: str, kind: type, features: datasets.Features) -> str:
    if chosen is not None:
        if chosen not in features:
            raise UserError(f"{key} = {chosen} is no column of the source: it has {', '.join(features)}")
        allowed = (kind, datasets.Value) if kind is datasets.ClassLabel else kind
        if not isinstance(features[chosen], allowed):
            raise UserError(f"{key} = {chosen} is a column of type {type(features[chosen]).__name__}")
        return chosen
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if not found and kind is datasets.Image:
        raise UserError(f"the source has no column of pictures, only {', '.join(features)}")
    if len(found) != 1:
        raise UserError(
            f"the source has {len(found)} columns of type {kind.__name__}: set {key} to one of {', '.join(features)}"
        )
    return found[0]


def _named(source: datasets.DatasetDict) -> datasets.DatasetDict:
    """Turn a column of plain values into class labels, in sorted order."""
    text, names = source.cast_column("label", datasets.Value("string")), {}
    for split in source:
        names |= dict(zip(source[split].unique("label"), text[split].unique("label"), strict=True))
    return text.cast_column("label", datasets.ClassLabel(names=[names[value] for value in sorted(names)]))


def _check_labels(source: datasets.DatasetDict, what: str) -> None:
    names = class_names(source["train"])
    if len(names) < 2:
        raise UserError(f"data.source = {what} has one class, {names[0]}: a classifier needs two or more")
    for split, rows in source.items():
        labels = np.asarray(rows["label"])
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(outside):
            raise UserError(
                f"data.source = {what}: row {outside[0]} of {split} has label {labels[outside[0]]}, "
                f"outside the {len(names)} class names"
            )
        if missing := [name for label, name in enumerate(names) if label not in labels]:
            raise UserError(f"data.source = {what}: {split} holds no picture of the class {', '.join(missing[:5])}")


def location(image: dict | None, row: str) -> str:
    """How to name a picture to a person: its file below the working folder, or its row."""
    own_file = image and image["bytes"] is None and os.path.normpath(image["path"] or "").startswith(LOCAL)
    return image["path"] if own_file else row


def read(image: dict | None) -> bytes:
    """The bytes of a picture file; none where a row has no picture."""
    if image is None or (image["bytes"] is None and not image["path"]):
        return b""
    if image["bytes"] is not None:
        return image["bytes"]
    # A table may name any file of this machine: what is read lies with the pictures, or in the hub's cache.
    path = Path(os.path.abspath(image["path"]))
    roots = (LOCAL, datasets.config.HF_CACHE_HOME, datasets.config.DOWNLOADED_DATASETS_PATH, hub.HF_HUB_CACHE)
    if not any(path.is_relative_to(Path(root).absolute()) for root in roots):
        raise OSError(f"{path} lies outside {LOCAL}")
    return path.read_bytes()
