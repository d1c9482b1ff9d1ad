"""Templates and tables for the files that people read."""

import html
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from image_classifier.core.errors import printable

FORMATTING = re.compile(r"[\\`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word does not format
ROWS = 50  # of a table, at most


def render(template: Path, facts: dict[str, Any]) -> str:
    """The template's text with these facts in it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(facts)


def cell(value: Any) -> str:
    """A value for a cell: in the name of a class a bar would end the cell, a line break the row, and signs format."""
    shown = "" if pd.isna(value) else f"{value:.4f}" if isinstance(value, float) else str(value)
    return FORMATTING.sub(r"\\\g<0>", html.escape(printable(shown), quote=False))


def to_markdown(table: pd.DataFrame, worst: str | None = None) -> str:
    """A table with its index as the first column; of a long one the rows with the least in the column `worst`."""
    if worst and len(table) > ROWS:
        table = table.nsmallest(ROWS, worst)
    table = table.rename_axis(table.index.name or "").reset_index()
    return table.astype(object).map(cell).to_markdown(index=False, disable_numparse=True)
