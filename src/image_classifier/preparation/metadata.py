"""Images that tables beside them list: metadata.csv or metadata.jsonl, with a column file_name."""

import json
import os
import re
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from image_classifier.core.errors import UserError, first_line, printable
from image_classifier.preparation import decode, folders

NAMES = ("metadata.csv", "metadata.jsonl")


def tables(folder: Path) -> list[Path]:
    """The tables in a folder and below it, sorted."""
    found = sorted(path for path in folder.rglob("metadata.*") if path.name in NAMES)
    return [path for path in found if not any(map(decode.is_leftover, path.relative_to(folder).parts))]


def load(folder: Path) -> datasets.DatasetDict:
    """The listed images, undecoded, and the tables' other columns, in the order of the tables' paths.

    An image below a folder with a split's name is of that split. `datasets` can read these tables too, but in an order
    that changes from run to run, and takes the text of a CSV for numbers: the labels 01 and 1, 1.10 and 1.1 become one.

    Raises UserError: a table cannot be read or names no files, or only some of the images are of a split.
    """
    rows = pd.concat([_read(path) for path in tables(folder)], ignore_index=True)
    below = [Path(os.path.relpath(path, folder)) for path in rows["image"]]
    splits = pd.Series([next(filter(None, map(_split, path.parent.parts)), "") for path in below])
    if (outside := splits == "").any() and not outside.all():
        other = printable(below[outside.argmax()])
        raise UserError(f"{folder} lists images of {splits.max()} and also {other}: put it into a split's folder too")
    listed, ends = set(map(os.path.abspath, rows["image"])), decode.suffixes()
    images = [path for path in folder.rglob("*") if path.suffix.lower() in ends and not decode.is_leftover(path.name)]
    if others := [path for path in images if os.path.abspath(path) not in listed]:
        print(f"prepare: {folder}: {len(others)} images, such as {printable(others[0])}, are in no table: not used")
    parts = {name or "train": rows[splits == name] for name in sorted(splits.unique())}
    return datasets.DatasetDict({name: _dataset(part, folder) for name, part in parts.items()})


def _split(name: str) -> str | None:
    return folders.SPLITS.get(name.lower())


def _read(path: Path) -> pd.DataFrame:
    """A table as it is written: cells of a CSV are text, but in a column of nothing but whole numbers."""
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        else:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            table = pd.DataFrame([json.loads(line) for line in lines if line.strip()], dtype=object)
    except ValueError as error:  # of pandas, JSON and UTF-8
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if "file_name" not in table.columns:
        raise UserError(f"{path} has no column file_name, only {', '.join(map(str, table.columns))}")
    for name in table.columns:
        if path.suffix == ".csv" and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", cell) for cell in table[name]):
            table[name] = table[name].astype(int)
    images = [os.path.normpath(path.parent / str(name)) for name in table["file_name"]]
    return table.drop(columns="file_name").assign(image=images)


def _dataset(rows: pd.DataFrame, folder: Path) -> datasets.Dataset:
    columns: dict[str, Any] = rows.drop(columns="image").to_dict("list")
    columns["image"] = [{"bytes": None, "path": path} for path in rows["image"]]
    try:
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    except (TypeError, ValueError) as error:  # pyarrow's: a column of several types
        raise UserError(f"data.source = {folder}: its tables do not fit together: {first_line(error)}") from None
