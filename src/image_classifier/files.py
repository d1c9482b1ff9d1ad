"""Files and folders that appear whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from image_classifier.errors import UserError


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in bare hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file or folder to be made; rename it into place on success.

    What stood under `path` is replaced. On failure the unfinished work is removed and `path` stays
    as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    remove(unfinished)
    try:
        yield unfinished
        if path.is_dir() or unfinished.is_dir():
            remove(path)
        os.replace(unfinished, path)
    finally:
        remove(unfinished)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for work that nobody needs afterwards; what a killed run left in it goes too."""
    remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        remove(folder)


def remove(path: str | Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or damaged; `remedy` is what to do then.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
