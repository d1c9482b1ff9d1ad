"""Where labelled images come from, each source as a `datasets.DatasetDict`.

Every source has the columns `image` (an Image feature, not decoded: the file's bytes or path),
`label` (a ClassLabel with names), `row` ("row 7 of train") and, with data.group, `group` (text),
whatever they were called before; and the splits `train` and, where it has them, `validation` and `test`.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet
from ruamel.yaml import YAML, YAMLError

from image_classifier import files, folders, hub
from image_classifier.config import Data, is_commit
from image_classifier.errors import UserError, first_line, printable
from image_classifier.runtime import repository

LOCAL = "data/raw/"
SPLITS = ("train", "validation", "test")
TABLES = ("metadata.csv", "metadata.jsonl")  # that `datasets` reads beside a folder of images

datasets.disable_progress_bars()


def load(data: Data, scratch: Path) -> datasets.DatasetDict:
    """Load `data.source`; the images stay undecoded, and tables of them in `scratch` as long as the result lives.

    Raises UserError: the source is missing, empty, or not a set of labelled images.
    """
    if data.source == "digits":
        source = _digits()
    elif data.source.startswith(LOCAL):
        source = _local(data, Path(data.source), scratch)
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


def _local(data: Data, folder: Path, scratch: Path) -> datasets.DatasetDict:
    """Parquet in the layout `datasets` reads, images beside a metadata table, or one sub-folder per class."""
    if ".." in folder.parts:
        raise UserError(f"data.source = {folder} leaves {LOCAL}: name a folder inside it")
    if not folder.is_dir():
        if repository().resolve() != Path.cwd() and (repository() / folder).is_dir():
            raise UserError(
                f"data.source = {folder} is in the workspace but this run, in a folder of its own, cannot see it: "
                f"put it under DVC first: `dvc add {folder}`, then commit {folder}.dvc"
            )
        raise UserError(f"data.source = {folder}: there is no such folder")
    folders.check(Path(LOCAL))
    what, options = f"data.source = {folder}", {"cache_dir": str(scratch), "name": data.config}
    if any(folder.rglob("*.parquet")):
        _check_card(folder)
        _check_tables(folder, _loaded(str(folder), what, load=datasets.load_dataset_builder, **options))
        return _loaded(str(folder), what, **options)
    if not folders.visible(folder):
        raise UserError(f"{what} is empty: it must hold parquet files, or one sub-folder per class")
    if told := folders.left_out(folder):
        print(f"prepare: {folder}: {told}")
    if any(path for name in TABLES for path in folder.rglob(name)):
        return _loaded("imagefolder", what, data_dir=str(folder), drop_labels=True, cache_dir=str(scratch))
    roots = folders.splits(folder)
    found = {name: list(folders.images(root, deeper=data.group == "folder")) for name, root in roots.items()}
    names = sorted({path.name for root in roots.values() for path in folders.visible(root)})
    source = datasets.DatasetDict()
    for name, images in found.items():
        paths = [{"bytes": None, "path": str(path)} for _, path in images]
        source[name] = _table(paths, [names.index(label) for label, _ in images], names)
        if data.group is not None:
            groups = [_group_of(path.relative_to(roots[name]), data.group) for _, path in images]
            source[name] = source[name].add_column(data.group, groups)
    return source


def _group_of(path: Path, group: str) -> str:
    """The group of an image at CLASS/.../NAME: its folder inside the class, or what `group` finds in its name."""
    if group == "folder":
        if len(path.parts) < 3:
            raise UserError(f"data.group = folder, but {printable(path)} lies in no folder inside its class")
        return "/".join(path.parts[1:-1])
    try:
        found = re.search(group, path.name)
    except re.error as error:
        raise UserError(f"data.group = {group} is not a regular expression: {error}") from None
    if not found or not found[0]:
        raise UserError(f"data.group = {group} finds nothing in the file name {printable(path.name)}")
    return next((text for text in found.groups() if text), found[0])


def _check_card(folder: Path) -> None:
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
            raise UserError(f"data.source = {folder} takes {path} from elsewhere: its files must lie in it")


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


def _hub(data: Data) -> datasets.DatasetDict:
    what = f"data.source = {data.source}"
    if not is_commit(data.revision):
        raise UserError(
            f"{what} needs data.revision, the commit of the dataset (40 hex digits, from the Hub's list of commits), "
            f"not {data.revision}; a local folder begins with {LOCAL}"
        )
    fetch = f"hf download --repo-type dataset {data.source} --revision {data.revision} --local-dir {LOCAL}NAME"
    remedy = f"without the hub, run `{fetch}` where it can be reached and set data.source={LOCAL}NAME here"
    print(f"prepare: looking for {data.source} in the cache and on the Hugging Face hub", flush=True)
    # On disk, whatever HF_DATASETS_IN_MEMORY_MAX_SIZE says: only then it is known which commit it is.
    options = {"revision": data.revision, "name": data.config, "keep_in_memory": False}
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


def _loaded(path: str, what: str, remedy: str = "", load: Callable = datasets.load_dataset, **options) -> Any:
    """What `datasets` makes of a folder, or of a repository of the hub, where `remedy` is for want of a network."""
    try:
        return load(path, **options)
    except Exception as error:  # of many libraries: files, parquet, HTTP
        if names := re.search(r"(?:available configs|not found. Available): \[(.*?)\]", str(error)):
            raise UserError(f"{what} has several configurations: set data.config to one of {names[1]}") from None
        cause = hub.reason(error, "data", remedy) if remedy else first_line(error.__cause__ or error)
        raise UserError(f"{what} cannot be loaded: {cause}") from None


def _standard(source: datasets.DatasetDict, data: Data) -> datasets.DatasetDict:
    """The same images under the standard names of columns and splits."""
    source = _named_splits(source, data)
    features = source["train"].features
    image = _image_column(data.image_column, features)
    label = _label_column(data.label_column, image, features)
    if group := data.group:
        _check_column("data.group", group, features)
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
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = found or [name for name, feature in features.items() if _is_bytes(feature)]
    if chosen is not None:
        _check_column("data.image_column", chosen, features)
        if not (isinstance(features[chosen], datasets.Image) or _is_bytes(features[chosen])):
            raise UserError(
                f"data.image_column = {chosen} is a column of type {_type(features[chosen])}, not of images or bytes"
            )
        return chosen
    if not found:
        raise UserError(f"the source has no column of images, only {', '.join(features)}")
    if len(found) > 1:
        raise UserError(
            f"the source has {len(found)} columns of images: set data.image_column to one of {', '.join(found)}"
        )
    return found[0]


def _label_column(chosen: str | None, image: str, features: datasets.Features) -> str:
    plain = [
        name
        for name, feature in features.items()
        if name != image and isinstance(feature, datasets.Value) and not _is_bytes(feature)
    ]
    found = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if chosen is not None:
        _check_column("data.label_column", chosen, features)
        if chosen not in (*found, *plain):
            raise UserError(
                f"data.label_column = {chosen} is a column of type {_type(features[chosen])}, not of one label each"
            )
        return chosen
    found = found or plain
    if not found:
        raise UserError(f"the source has no column of labels, only {', '.join(features)}")
    if len(found) > 1:
        raise UserError(
            f"the source has {len(found)} columns of labels: set data.label_column to one of {', '.join(found)}"
        )
    return found[0]


def _check_column(key: str, chosen: str, features: datasets.Features) -> None:
    if chosen not in features:
        raise UserError(f"{key} = {chosen} is no column of the source: it has {', '.join(features)}")


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
    text, names = source.cast_column("label", datasets.Value("string")), {}
    for split in source:
        names |= dict(zip(source[split].unique("label"), text[split].unique("label"), strict=True))
    return text.cast_column("label", datasets.ClassLabel(names=[names[value] for value in sorted(names)]))


def _check_labels(source: datasets.DatasetDict, what: str) -> None:
    names = class_names(source["train"])
    if len(names) < 2:
        raise UserError(f"data.source = {what} has one class, {names[0]}: a classifier needs two or more")
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
    if not any(path.is_relative_to(Path(root).absolute()) for root in roots):
        raise OSError(f"{path} lies outside {LOCAL}")
    return path.read_bytes()
