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

    An image in or below a folder named after a split belongs to that split. `datasets` can read these tables too, but
    in an order that changes between runs, and it parses text as numbers: 01 and 1 become one label, as do 1.10 and 1.1.

    Raises UserError: a table cannot be read, none lists an image, or only some of the images are of a split.
    """
    rows = pd.concat([_read(path) for path in tables(folder)], ignore_index=True)
    if rows.empty:
        raise UserError(f"data.source = {folder}: its tables list no images")
    for name in rows.columns:  # numbers sort as numbers: class 9 comes before class 10
        if all(isinstance(cell, str) and re.fullmatch(r"0|-?[1-9]\d{0,17}", cell) for cell in rows[name]):
            rows[name] = rows[name].astype(int)
    below = [Path(os.path.relpath(path, folder)) for path in rows["image"]]
    splits = pd.Series([next(filter(None, map(_split, path.parent.parts)), "") for path in below])
    if (outside := splits == "").any() and not outside.all():
        other = printable(below[outside.argmax()])
        what = f"{folder} lists images in folders named after splits, and also {other}"
        raise UserError(f"{what}: move it into a folder named train, validation or test, or rename those folders")
    listed, ends = set(map(os.path.abspath, rows["image"])), decode.suffixes()
    images = [path for path in folder.rglob("*") if path.suffix.lower() in ends and not decode.is_leftover(path.name)]
    if others := [path for path in images if os.path.abspath(path) not in listed]:
        print(f"prepare: {folder}: not used: {len(others)} images that no table lists, such as {printable(others[0])}")
    parts = {name or "train": rows[splits == name] for name in sorted(splits.unique())}
    return datasets.DatasetDict({name: _dataset(part, folder) for name, part in parts.items()})


def _split(name: str) -> str | None:
    return folders.SPLITS.get(name.lower())


def _read(path: Path) -> pd.DataFrame:
    """A table as it is written, the cells of a CSV as text; the paths of the images in the column image."""
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            table = pd.DataFrame([dict(json.loads(line)) for line in lines if line.strip()], dtype=object)
    except (TypeError, ValueError) as error:  # of pandas, JSON and UTF-8
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for one
        raise UserError(f"{path} has rows with more cells than its header, as a trailing comma makes: remove it")
    if "file_name" not in table.columns:
        raise UserError(f"{path} has no column file_name, only {', '.join(map(str, table.columns))}")
    if "image" in table.columns:
        raise UserError(f"{path} has a column named image beside file_name: rename it")
    images = [os.path.normpath(path.parent / str(name)) for name in table["file_name"]]
    return table.drop(columns="file_name").assign(image=images)


def _dataset(rows: pd.DataFrame, folder: Path) -> datasets.Dataset:
    cells = rows.drop(columns="image").astype(object)
    columns: dict[str, Any] = cells.where(cells.notna(), None).to_dict("list")  # what a table lacks is null
    columns["image"] = [{"bytes": None, "path": path} for path in rows["image"]]
    try:
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    except (OverflowError, TypeError, ValueError) as error:  # pyarrow's: a column of several types, or of huge numbers
        raise UserError(
            f"data.source = {folder}: the columns of its tables do not match: {first_line(error)}"
        ) from None
