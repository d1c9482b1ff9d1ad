"""Images in one folder per class, with or without split folders above; what lies there besides is told or refused."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from image_classifier.core.errors import UserError, printable
from image_classifier.preparation import decode

# What people call the three splits.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx")
QUIET = {".gitignore", ".gitkeep", ".DS_Store"}  # hidden files that are no images and need no word


def check(root: Path) -> None:
    """Refuse what DVC cannot follow below `root`.

    Raises UserError: a folder is a link, behind which DVC sees no change; or a name is not UTF-8.
    """
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if name in folders and path.is_symlink():
                raise UserError(
                    f"{path} is a link to a folder, behind which DVC sees no change: put a copy there (cp -rL), or "
                    "links to the single files"
                )
            try:
                os.fspath(path).encode()
            except UnicodeEncodeError:
                raise UserError(f"{printable(path)}: its name is not UTF-8, which DVC needs: rename it") from None


def splits(root: Path) -> dict[str, Path]:
    """The folder of each split in `root`: train, validation, test; `root` itself as train where there are none.

    Raises UserError: there is something beside the splits, or a split twice.
    """
    present = visible(root)
    # Split folders are told from classes that happen to be called "test" by holding folders themselves.
    found = [path for path in present if path.name.lower() in SPLITS and any(map(Path.is_dir, visible(path)))]
    if not found:
        return {"train": root}
    named: dict[str, Path] = {}
    for path in found:
        name = SPLITS[path.name.lower()]
        if name in named:
            raise UserError(f"{named[name]} and {path} are both {name}: put them together, or remove one")
        named[name] = path
    for path in present:
        if path in found:
            continue
        what = f"{root} holds the splits {', '.join(named)} and also {printable(path.name)}"
        if path.name.lower() in SPLITS:
            raise UserError(f"{what}, which has no class folders: without labels it is of no use here, so move it away")
        raise UserError(f"{what}: rename it to one of train, validation, test, or move it away")
    return named


def images(root: Path, deeper: bool = False) -> Iterator[tuple[str, Path]]:
    """The class and the path of each image file below the class folders in `root`, sorted.

    `deeper` allows folders inside a class.

    Raises UserError: there is a file among the class folders, or a folder inside a class.
    """
    for folder in visible(root):
        if not folder.is_dir():
            if folder.suffix.lower() in TABLES:
                raise UserError(
                    f"{printable(folder)} is a file among the folders of the classes: move it away; a table of labels "
                    "is read if it is called metadata.csv and has a column file_name"
                )
            raise UserError(
                f"{printable(folder)} is a file among the folders of the classes: remove it, or sort it into a class"
            )
        for path in sorted(folder.rglob("*") if deeper else visible(folder)):
            if not path.is_dir() and not any(map(decode.is_leftover, path.relative_to(root).parts)):
                yield folder.name, path
            elif not deeper and path.is_dir():
                raise UserError(
                    f"{printable(path)} is a folder inside a class: {root} must hold one folder per class, no deeper; "
                    "or set data.group=folder if each such folder is a group, as of one patient"
                )


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, but for hidden files and what operating systems leave."""
    return [path for path in sorted(folder.iterdir()) if not decode.is_leftover(path.name)] if folder.is_dir() else []


def left_out(root: Path) -> str:
    """A line about the hidden files and folders below `root`, and what operating systems left; none is read."""
    counts: Counter[str] = Counter()
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        hidden = next((part for part in parts if decode.is_leftover(part)), None)
        if hidden and path.is_file() and path.name not in QUIET:
            counts[hidden] += 1
    if not counts:
        return ""
    some = ", ".join(f"{printable(name)} ({count})" for name, count in counts.most_common(5))
    more = f", and {len(counts) - 5} more names" if len(counts) > 5 else ""
    return f"left out {counts.total()} hidden or system files: {some}{more}"
