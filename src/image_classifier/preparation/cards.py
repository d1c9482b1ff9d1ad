"""What a folder of parquet files may say about itself: its README and the class names in its tables."""

import os
import re
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import parquet
from ruamel.yaml import YAML, YAMLError

from image_classifier.core.errors import UserError


def check_card(folder: Path) -> None:
    """Refuse a README.md that names files elsewhere, before `datasets` asks for them."""
    card = folder / "README.md"
    if (folder / ".huggingface.yaml").exists():
        raise UserError(f"{folder / '.huggingface.yaml'} would change what `datasets` reads: remove it")
    if not card.is_file():
        return
    # As huggingface_hub finds it, which a blank line before it does not keep from that.
    head = re.search(r"^(?:\s*---[\r\n]+)([\S\s]*?)(?:[\r\n]+---(?:\r\n|\n|$))", card.read_text(errors="replace"))
    try:
        settings = YAML(typ="safe", pure=True).load(head[1]) if head else {}
    except YAMLError:
        return  # which `datasets` will tell

    def texts(value: Any) -> Any:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from texts(part)
        elif isinstance(value, str):
            yield value

    for path in texts((settings or {}).get("configs")):
        if "://" in path or path.startswith(("/", "~")) or ".." in Path(path).parts:
            raise UserError(f"data.source = {folder} refers to {path}, outside of it: put its files inside")


def check_tables(folder: Path, builder: datasets.DatasetBuilder) -> None:
    """Refuse files elsewhere, which a README.md may name, and tables that number the same classes otherwise.

    `datasets` gives the class names of the first table to all of them.
    """
    known: dict[str, datasets.ClassLabel] = {}
    for file in chain.from_iterable((builder.config.data_files or {}).values()):
        path = Path(os.path.abspath(file))
        if not path.is_relative_to(folder.absolute()):
            raise UserError(f"data.source = {folder} refers to {file}, outside of it: put its files inside")
        features: dict[str, Any] = {}
        with suppress(pyarrow.ArrowInvalid):  # no parquet, or damaged: loading it will say so
            features = datasets.Features.from_arrow_schema(parquet.read_schema(path))
        for name, feature in features.items():
            if isinstance(feature, datasets.ClassLabel) and feature != known.setdefault(name, feature):
                raise UserError(f"data.source = {folder}: {path.name} has other class numbers than the other tables")
