"""Where labeled images come from, each source as a `datasets.DatasetDict`.

Every source has the columns `image` (an Image feature, not decoded: the file's bytes or path),
`label` (a ClassLabel with names), `row` ("row 7 of train") and, with data.group, `group` (text),
whatever they were called before; and the splits `train` and, where it has them, `validation` and `test`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import constants
from PIL import Image

from image_classifier.core import config, files, hub
from image_classifier.core.config import Data
from image_classifier.core.errors import UserError, first_line, printable
from image_classifier.preparation import folders, metadata
from image_classifier.preparation.cards import check_card, check_tables
from image_classifier.preparation.columns import check_labels, standardized

LOCAL = "data/raw/"


def load(data: Data, scratch: Path) -> datasets.DatasetDict:
    """Load `data.source`; the images stay undecoded, and tables of them in `scratch` as long as the result lives.

    Raises UserError: the source is missing, empty, or not a set of labeled images.
    """
    if data.source == "digits":
        source = _digits()
    elif data.source.startswith(LOCAL):
        source = _local(data, Path(data.source), scratch)
    else:
        source = _hub(data)
    source = standardized(source, data)
    check_labels(source, data.source)
    return source


def _digits() -> datasets.DatasetDict:
    """The 1,797 handwritten digits, 8x8 gray, that ship inside scikit-learn.

    Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")  # 17 gray levels to 256
    names = [str(digit) for digit in digits.target_names]
    return datasets.DatasetDict({"train": _table([Image.fromarray(image) for image in pixels], digits.target, names)})


def _table(images: list, labels: list | np.ndarray, names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _local(data: Data, folder: Path, scratch: Path) -> datasets.DatasetDict:
    """Parquet in the layout `datasets` reads, images beside a metadata table, or one sub-folder per class."""
    if ".." in folder.parts:
        raise UserError(f"data.source = {folder} leaves {LOCAL}: name a folder inside it")
    if not folder.is_dir():
        if files.repository().resolve() != Path.cwd() and (files.repository() / folder).is_dir():
            raise UserError(
                f"data.source = {folder} is in the workspace but this run, in a folder of its own, cannot see it: "
                f"put it under DVC first: `dvc add {folder}`, then commit {folder}.dvc"
            )
        raise UserError(
            f"data.source: {folder} does not exist: put one folder per class there, or set data.source=digits"
        )
    folders.check(Path(LOCAL))
    what = f"data.source = {folder}"
    options: dict[str, Any] = {"cache_dir": str(scratch), "name": data.config}
    if any(folder.rglob("*.parquet")):
        if re.search(r"[\[\]*?]", str(folder)):
            raise UserError(f"{what} contains one of [ ] * ?, which `datasets` reads as a pattern: rename the folder")
        chosen = check_card(folder) or data.config is not None
        check_tables(folder, _loaded(str(folder), what, load=datasets.load_dataset_builder, **options), chosen)
        return _loaded(str(folder), what, **options)
    if not folders.visible(folder):
        raise UserError(f"{what} is empty: it must hold parquet files, or one sub-folder per class")
    if told := folders.left_out(folder):
        print(f"prepare: {folder}: {told}")
    if metadata.tables(folder):
        return metadata.load(folder)
    roots = folders.splits(folder)
    found = {name: list(folders.images(root, deeper=data.group == "folder")) for name, root in roots.items()}
    names = sorted({path.name for root in roots.values() for path in folders.visible(root)})
    source = datasets.DatasetDict()
    for name, images in found.items():
        paths = [{"bytes": None, "path": str(path)} for _, path in images]
        source[name] = _table(paths, [names.index(label) for label, _ in images], names)
        if data.group is not None:
            if data.group in ("image", "label"):
                raise UserError(
                    f"data.group = {data.group} is also the name of a column here: write it as ({data.group})"
                )
            groups = [_group_of(path.relative_to(roots[name]), data.group) for _, path in images]
            source[name] = source[name].add_column(data.group, groups)
    return source


def _group_of(path: Path, group: str) -> str:
    """The group of an image at CLASS/.../NAME: the first folder inside the class, or what `group` finds in its name."""
    if group == "folder":
        if len(path.parts) < 3:
            raise UserError(f"data.group = folder, but {printable(path)} lies in no folder inside its class")
        return path.parts[1]
    try:
        found = re.search(group, path.name)
    except re.error as error:
        raise UserError(f"data.group = {group} is not a regular expression: {error}") from None
    if not found or not found[0]:
        raise UserError(f"data.group = {group} finds nothing in the file name {printable(path.name)}")
    return next((text for text in found.groups() if text), found[0])


def _hub(data: Data) -> datasets.DatasetDict:
    what = f"data.source = {data.source}"
    if data.revision is None or not config.is_commit(data.revision):
        raise UserError(
            f"{what} needs data.revision, the commit of the dataset (40 hex digits, from the Hub's list of commits), "
            f"not {data.revision}; a local folder begins with {LOCAL}"
        )
    fetch = f"hf download --repo-type dataset {data.source} --revision {data.revision} --local-dir {LOCAL}NAME"
    remedy = f"without the hub, run `{fetch}` where it can be reached and set data.source={LOCAL}NAME here"
    print(f"prepare: looking for {data.source} in the cache and on the Hugging Face hub", flush=True)
    # On disk, whatever HF_DATASETS_IN_MEMORY_MAX_SIZE says: only then it is known which commit it is.
    options: dict[str, Any] = {"revision": data.revision, "name": data.config, "keep_in_memory": False}
    source = _loaded(data.source, f"{what} at {data.revision}", remedy, **options)
    # Without the hub `datasets` serves what it cached last, of any commit; its folder is named after that.
    folders_ = {Path(file["filename"]).parent for rows in source.values() for file in rows.cache_files}
    if {folder.name for folder in folders_} != {data.revision}:
        (other,) = folders_ or {Path("nothing")}
        if (pinned := other.with_name(data.revision)).is_dir():
            return _cached(pinned)
        raise UserError(f"{what} at {data.revision}: without the hub, the cache gave {other.name}; {remedy}")
    return source


def _cached(folder: Path) -> datasets.DatasetDict:
    """A dataset in a folder of the cache of `datasets`, each split whole."""
    info = files.read_json(folder / "dataset_info.json", f"remove {folder}")
    source = datasets.DatasetDict()
    for name, split in info["splits"].items():
        tables = sorted(folder.glob(f"*-{name}.arrow")) or sorted(folder.glob(f"*-{name}-*-of-*.arrow"))
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(table)) for table in tables])
        if len(rows) != split["num_examples"]:
            raise UserError(f"{folder} has {len(rows)} rows of {name} and not {split['num_examples']}: remove it")
        source[name] = rows
    return source


def _loaded(path: str, what: str, remedy: str = "", load: Callable = datasets.load_dataset, **options: Any) -> Any:
    """What `datasets` makes of a folder, or of a repository of the hub, where `remedy` is for want of a network."""
    try:
        return load(path, **options)
    except Exception as error:  # of many libraries: files, parquet, HTTP
        if names := re.search(r"(?:available configs|not found. Available): \[(.*?)\]", str(error)):
            raise UserError(f"{what} has several configurations: set data.config to one of {names[1]}") from None
        cause = hub.reason(error, "data", remedy) if remedy else first_line(error.__cause__ or error)
        raise UserError(f"{what} cannot be loaded: {cause}") from None


def location(image: dict | None, row: str) -> str:
    """How to name an image to a person: its file below the working folder, or its row."""
    if image and image["bytes"] is None and image["path"]:
        path = os.path.relpath(image["path"])  # which `datasets` may have made absolute
        if path.startswith(LOCAL):
            return path
    return row


def read(image: dict | None) -> bytes:
    """The bytes of an image file; none where a row has no image."""
    if image is None or (image["bytes"] is None and not image["path"]):
        return b""
    if image["bytes"] is not None:
        return image["bytes"]
    # A table may name any file of this machine: what is read lies with the images, or in the hub's cache.
    path = Path(os.path.abspath(image["path"]))
    roots = (LOCAL, datasets.config.HF_CACHE_HOME, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    if not any(path.is_relative_to(base) for root in map(Path, roots) for base in (root.absolute(), root.resolve())):
        raise OSError(f"{path} lies outside {LOCAL}")
    return path.read_bytes()
