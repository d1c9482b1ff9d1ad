"""One layout for every source: the columns image, label, row and group, and the splits train, validation and test."""

import unicodedata
from collections import defaultdict
from typing import Any

import datasets
import numpy as np

from image_classifier.core.config import Data
from image_classifier.core.errors import UserError, printable
from image_classifier.preparation import folders

SPLITS = ("train", "validation", "test")


def standardized(source: datasets.DatasetDict, data: Data) -> datasets.DatasetDict:
    """The same images under the standard names of columns and splits."""
    source = _named_splits(_split_by_column(source, data), data)
    features = source["train"].features
    image = _image_column(data.image_column, features)
    label = _label_column(data.label_column, image, features)
    if group := data.group:
        check_column("data.group", group, features)
        if not isinstance(features[group], datasets.Value | datasets.ClassLabel):
            raise UserError(f"data.group = {group} is a column of type {_type(features[group])}, not of one value each")
        if group in (image, label):
            raise UserError(f"data.group = {group} is the column of the images or of the labels: name another")
    for name, split in source.items():
        if any(split.features.get(column) != features[column] for column in filter(None, (image, label, group))):
            raise UserError(f"data.source = {data.source}: {name} and train differ in columns or class names")
    for name in list(source):
        if name == "test" and _is_unlabelled(source[name], label):
            print(f"prepare: the {len(source[name])} images of test have no labels (-1): they are not used")
            del source[name]
            continue
        for column in filter(None, (label, group)):
            _check_missing(source[name], name, column, data.source)
    columns = {image: "image", label: "label"} | ({group: "group"} if group else {})
    if unused := ", ".join(printable(name) for name in features if name not in columns):
        print(f"prepare: not used: the columns {unused}")
    source = source.select_columns(list(columns)).rename_columns(
        {old: new for old, new in columns.items() if old != new}
    )
    source = source.cast_column("image", datasets.Image(decode=False))
    if group:
        source = source.cast_column("group", datasets.Value("string"))
    if not isinstance(source["train"].features["label"], datasets.ClassLabel):
        source = _named(source)
    for name, rows in source.items():
        source[name] = rows.add_column("row", [f"row {number} of {name}" for number in range(len(rows))])
    return source


def class_names(dataset: datasets.Dataset) -> list[str]:
    """The names of the classes, in the order of their labels."""
    return dataset.features["label"].names


def _split_by_column(source: datasets.DatasetDict, data: Data) -> datasets.DatasetDict:
    """The splits that a column of text names for each row (train, val, test), where the source has but one split.

    Raises UserError: there are two such columns.
    """
    if len(source) > 1:
        return source
    (rows,) = source.values()
    texts = [name for name, feature in rows.features.items() if _type(feature) in ("string", "large_string")]
    found = [name for name in texts if name not in (data.label_column, data.group) and _names_splits(rows.unique(name))]
    if not found:
        return source
    if len(found) > 1:
        raise UserError(f"data.source = {data.source}: the columns {', '.join(found)} all name splits: keep one")
    names = np.array([folders.SPLITS[name.lower()] for name in rows[found[0]]])
    splits = {name: rows.select(np.flatnonzero(names == name)).flatten_indices() for name in SPLITS if name in names}
    counts = ", ".join(f"{name} {len(split)}" for name, split in splits.items())
    print(f"prepare: the column {found[0]} names the split of each image: {counts}")
    return datasets.DatasetDict(splits).remove_columns(found[0])


def _names_splits(values: list[str | None]) -> bool:
    return bool(values) and all(value is not None and value.lower() in folders.SPLITS for value in values)


def _named_splits(source: datasets.DatasetDict, data: Data) -> datasets.DatasetDict:
    """The splits under their standard names; one that is not used is told."""
    named, unused = datasets.DatasetDict(), []
    for name, rows in source.items():
        standard = folders.SPLITS.get(name.lower())
        if standard is None:
            unused.append(f"{name} ({len(rows)} images)")
        elif standard in named:
            raise UserError(
                f"data.source = {data.source} has two splits that are called {standard}, one of them {name}"
            )
        else:
            named[standard] = rows
    if "train" not in named:
        raise UserError(f"data.source = {data.source} has no train split, only {', '.join(source)}")
    if "validation" in named and data.val_from != "validation":
        rows = named.pop("validation")
        unused.append(f"validation ({len(rows)} images; data.val_from = {data.val_from})")
    if unused:
        print(f"prepare: not used: {', '.join(unused)}")
    return datasets.DatasetDict({name: named[name] for name in SPLITS if name in named})


def _is_bytes(feature: Any) -> bool:
    """Whether a column holds files as pandas or Spark write them: bytes, or {bytes, path}."""
    if isinstance(feature, dict):
        return {"bytes"} <= feature.keys() <= {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _image_column(chosen: str | None, features: datasets.Features) -> str:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    files = [name for name, feature in features.items() if _is_bytes(feature)]
    return _column("image", "of images or bytes", chosen, images or files, images + files, features)


def _label_column(chosen: str | None, image: str, features: datasets.Features) -> str:
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    values = [
        name
        for name, feature in features.items()
        if name != image and isinstance(feature, datasets.Value) and not _is_bytes(feature)
    ]
    return _column("label", "of one label each", chosen, labels or values, labels + values, features)


def _column(
    what: str, kind: str, chosen: str | None, found: list[str], allowed: list[str], features: datasets.Features
) -> str:
    """The column of images or of labels: the one `chosen` among those allowed, or the only one found.

    Raises UserError: there is none, or there are several.
    """
    key = f"data.{what}_column"
    if chosen is not None:
        check_column(key, chosen, features)
        if chosen not in allowed:
            raise UserError(f"{key} = {chosen} is a column of type {_type(features[chosen])}, not {kind}")
        return chosen
    if not found:
        raise UserError(f"the source has no column of {what}s, only {', '.join(features)}")
    if len(found) > 1:
        raise UserError(f"the source has {len(found)} columns of {what}s: set {key} to one of {', '.join(found)}")
    return found[0]


def check_column(key: str, chosen: str, features: datasets.Features) -> None:
    if chosen not in features:
        raise UserError(f"{key} = {chosen} is not a column of the source, which has {', '.join(features)}")


def _type(feature: Any) -> str:
    return getattr(feature, "dtype", None) or type(feature).__name__


def _is_unlabelled(rows: datasets.Dataset, label: str) -> bool:
    """Whether no row has a label, as in the test splits of competitions: -1 throughout."""
    return isinstance(rows.features[label], datasets.ClassLabel) and set(rows.unique(label)) == {-1}


def _check_missing(rows: datasets.Dataset, split: str, label: str, source: str) -> None:
    """Refuse rows without a label: null, NaN or empty text."""
    missing = {"null": rows.data.column(label).null_count}
    if isinstance(rows.features[label], datasets.Value):
        values = rows.data.column(label).to_pylist()
        missing["NaN"] = sum(isinstance(value, float) and value != value for value in values)
        missing["empty"] = sum(isinstance(value, str) and not value.strip() for value in values)
    if count := sum(missing.values()):
        kinds = ", ".join(f"{number} {kind}" for kind, number in missing.items() if number)
        raise UserError(f"data.source = {source}: {count} of {len(rows)} rows of {split} have no {label} ({kinds})")


def _named(source: datasets.DatasetDict) -> datasets.DatasetDict:
    """Turn a column of plain values into class labels, in sorted order."""
    if source["train"].features["label"].dtype == "float16":  # which pyarrow can neither print nor sort
        source = source.cast_column("label", datasets.Value("float32"))
    text = source.cast_column("label", datasets.Value("string"))
    names: dict[Any, str] = {}  # value -> its text
    for split in source:
        names |= dict(zip(source[split].unique("label"), text[split].unique("label"), strict=True))
    return text.cast_column("label", datasets.ClassLabel(names=[names[value] for value in sorted(names)]))


def check_labels(source: datasets.DatasetDict, what: str) -> None:
    names = class_names(source["train"])
    if len(names) < 2:
        raise UserError(f"data.source = {what} has one class, {names[0]}: a classifier needs two or more")
    if odd := next((name for name in names if "\r" in name), None):  # which ends a row for readers of CSV
        raise UserError(f"data.source = {what}: the class {printable(odd)} contains a carriage return: remove it")
    _tell_twins(names)
    for split, rows in source.items():
        labels = np.asarray(rows["label"])
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(outside):
            raise UserError(
                f"data.source = {what}: row {outside[0]} of {split} has label {labels[outside[0]]}, "
                f"outside the {len(names)} class names"
            )
        if missing := [name for label, name in enumerate(names) if label not in labels]:
            some = ", ".join(map(printable, missing[:5]))
            raise UserError(f"data.source = {what}: {split} holds no image of the class {some}")


def _tell_twins(names: list[str]) -> None:
    """Say which classes differ only in case, blanks or the way Unicode writes them."""
    alike = defaultdict(list)
    for name in names:
        alike["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    if twins := [" and ".join(map(repr, found)) for found in alike.values() if len(found) > 1]:
        print(
            f"prepare: classes that differ only in case, blanks or Unicode form: {'; '.join(twins[:5])}. Are they one?"
        )
