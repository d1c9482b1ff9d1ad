"""What a folder of parquet files may say about itself: its README and the class names in its tables."""

import os
import re
from contextlib import suppress
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from pyarrow import parquet
from ruamel.yaml import YAML, YAMLError

from image_classifier.core.errors import UserError
from image_classifier.preparation.decode import is_leftover


def check_card(folder: Path) -> bool:
    """Whether a README.md says which files to read.

    Raises UserError: it names files elsewhere, for which `datasets` would ask.
    """
    card = folder / "README.md"
    if (folder / ".huggingface.yaml").exists():
        raise UserError(f"{folder / '.huggingface.yaml'} would change what `datasets` reads: remove it")
    if not card.is_file():
        return False
    # As huggingface_hub finds it, which a blank line before it does not keep from that.
    head = re.search(r"^(?:\s*---[\r\n]+)([\S\s]*?)(?:[\r\n]+---(?:\r\n|\n|$))", card.read_text(errors="replace"))
    try:
        settings = YAML(typ="safe", pure=True).load(head[1]) if head else {}
    except YAMLError:
        return False  # which `datasets` will tell

    if not isinstance(settings, dict | None):
        raise UserError(f"{card} starts with a block between --- lines, which `datasets` parses as settings: move it")

    def texts(value: Any) -> Any:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)
        elif isinstance(value, str):
            yield value

    named = list(texts((settings or {}).get("configs")))
    for path in named:
        if "://" in path or path.startswith(("/", "~")) or ".." in Path(path).parts:
            raise UserError(f"data.source = {folder} refers to {path}, outside of it: put its files inside")
    return bool(named)


def check_tables(folder: Path, builder: datasets.DatasetBuilder, chosen: bool) -> None:
    """Refuse tables that `datasets` would misread, or ignore without a warning.

    It gives the class names of the first table to all. It ignores files that are not named after a split if others are
    (intended if the files are `chosen`), and all tables if there are more images. It accepts an incomplete download.
    """
    paths = [Path(os.path.abspath(file)) for file in chain(*(builder.config.data_files or {}).values())]
    what, known = f"data.source = {folder}", dict[str, datasets.ClassLabel]()
    for path in paths:
        if not path.is_relative_to(folder.absolute()):
            raise UserError(f"{what} refers to {path}, outside of it: put its files inside")
        if path.suffix != ".parquet":
            raise UserError(f"{what} holds parquet files and also {path.name}: keep one kind, and move the other away")
        part = re.fullmatch(r"(.*-)\d+(-of-0*(\d+))\b.*", path.name)  # before .parquet there may be a hash
        if part and (here := len(list(path.parent.glob(f"{escape(part[1])}*{escape(part[2])}*")))) < int(part[3]):
            raise UserError(f"{what}: {path.name} is one of {part[3]} files, and {here} were found: download the rest")
        features: dict[str, Any] = {}
        with suppress(ValueError, NotImplementedError):  # pyarrow's: no parquet, or damaged: loading it will say so
            features = datasets.Features.from_arrow_schema(parquet.read_schema(path))
        for name, feature in features.items():
            if isinstance(feature, datasets.ClassLabel) and feature != known.setdefault(name, feature):
                raise UserError(f"{what}: {path.name} has other class numbers than the other tables")
    everywhere = folder.absolute().rglob("*.parquet")
    found = {path for path in everywhere if not any(map(is_leftover, path.relative_to(folder.absolute()).parts))}
    if not chosen and (unread := sorted(found.difference(paths))):
        other = unread[0].relative_to(folder.absolute())
        raise UserError(
            f"{what}: {other} would be ignored, as only other files are named after a split: rename or move it"
        )
