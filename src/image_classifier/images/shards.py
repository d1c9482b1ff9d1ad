"""Preprocessed images on disk: written once in a stream, read through a memory map.

A split is a folder of `shard-00000.safetensors`, ... with `images` uint8 [N, size, size, 3]
(height, width, RGB), `labels` int64 [N], `hashes` uint8 [N, 32] (SHA-256 of the decoded source
image) and `rows` int64 [N] (the image's number among the rows of its split), and an `index.json`,
written last, with counts, class names and checksums. Equal inputs give equal bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from image_classifier.core import files
from image_classifier.core.errors import UserError
from image_classifier.images.resize import Resize

SHARD_SIZE = 1024  # images: 79 MB at 160 px
REMEDY = "run `dvc repro prepare` to make it again"


class ShardWriter:
    """Streams images into shards, holding one shard in memory at a time.

    With each shard it notes how far it is, so that a writer of the same folder goes on from there:
    `rows` of the source are done. `findings`, what a reader should know about the images, such as
    those left out, may grow meanwhile.
    """

    def __init__(self, folder: Path, resize: Resize, findings: dict | None = None, shard_size: int | None = None):
        self.folder, self.resize, self.findings = folder, resize, {} if findings is None else findings
        shard_size = shard_size or SHARD_SIZE
        folder.mkdir(parents=True, exist_ok=True)
        self.images = torch.empty((shard_size, resize.size, resize.size, 3), dtype=torch.uint8)
        self.labels = torch.empty(shard_size, dtype=torch.int64)
        self.hashes = torch.empty((shard_size, 32), dtype=torch.uint8)
        self.numbers = torch.empty(shard_size, dtype=torch.int64)
        self.filled = self.rows = 0
        self.counts: Counter[int] = Counter()  # images of each label
        self.shards: list[dict[str, Any]] = []
        self.notes = folder / ".notes.json"
        if self.notes.is_file():
            notes = _unsealed(self.notes, f"remove {folder}")
            self.rows, self.shards = notes["rows"], notes["shards"]
            self.findings.update(notes["findings"])
            for shard in self.shards:
                self.counts.update(_open(folder, shard, f"remove {folder}")["labels"].tolist())

    def written(self) -> Iterator[tuple[bytes, int]]:
        """The SHA-256 and the label of every image in the finished shards."""
        for shard in self.shards:
            tensors = _open(self.folder, shard, f"remove {self.folder}")
            yield from zip(map(bytes, tensors["hashes"].numpy()), tensors["labels"].tolist(), strict=True)

    def contents(self) -> tuple[list[Tensor], list[int]]:
        """All images so far, in runs uint8 [N, size, size, 3], read when they are used; and their rows."""
        if self.filled:
            self._flush()
        self.images = self.images[:0].clone()  # nothing is added any more: the memory is free
        shards = [_open(self.folder, shard, f"remove {self.folder}") for shard in self.shards]
        return [shard["images"] for shard in shards], [row for shard in shards for row in shard["rows"].tolist()]

    def add(self, image: Tensor, label: int, digest: bytes, row: int) -> None:
        """Append one image: uint8 [size, size, 3], its class, its SHA-256, and its row."""
        self.images[self.filled] = image
        self.labels[self.filled] = label
        self.hashes[self.filled] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        self.numbers[self.filled] = row
        self.filled += 1
        self.counts[label] += 1
        if self.filled == len(self.images):
            self._flush()

    def close(self, class_names: list[str]) -> int:
        """Write the last shard and then the index, which makes the folder readable; return how many images."""
        if self.filled:
            self._flush()
        count = self.counts.total()
        index = {
            "class_counts": {name: self.counts[label] for label, name in enumerate(class_names)},
            "class_names": class_names,
            "count": count,
            "findings": self.findings,
            "preprocessing": {
                "background": self.resize.background,
                "mode": "RGB",
                "resize": self.resize.mode,
                "size": self.resize.size,
            },
            "shards": self.shards,
        }
        _write_sealed(self.folder / "index.json", index)
        return count

    def _flush(self) -> None:
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        tensors = {"images": self.images, "labels": self.labels, "hashes": self.hashes, "rows": self.numbers}
        # More than one metadata key would come out in another order in every process.
        content = save({name: tensor[: self.filled] for name, tensor in tensors.items()}, metadata={"format": "pt"})
        with files.atomic(path) as unfinished:
            unfinished.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self.shards.append({"count": self.filled, "file": path.name, "sha256": digest})
        self.filled = 0
        _write_sealed(self.notes, {"findings": self.findings, "rows": self.rows, "shards": self.shards})


class ShardReader:
    """A split's images by number, through a memory map.

    Raises UserError: a file is missing, or is not the one that prepare wrote.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        index = _unsealed(folder / "index.json", REMEDY)
        self.sha256 = files.sha256(folder / "index.json")  # which holds the checksum of every shard
        self.images: list[Tensor] = []
        labels, hashes = [], []
        try:
            self.class_names: list[str] = index["class_names"]
            self.resize = Resize(*(index["preprocessing"][name] for name in ("size", "resize", "background")))
            for shard in index["shards"]:
                tensors = _open(folder, shard, REMEDY)
                self.images.append(tensors["images"])
                labels.append(tensors["labels"])
                hashes.append(tensors["hashes"])
            self.labels = torch.cat(labels)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'index.json'} is not an index of shards ({error!r}): {REMEDY}") from None
        self.hashes = [bytes(row).hex() for row in torch.cat(hashes).numpy()]
        self.starts = np.cumsum([0] + [len(images) for images in self.images])

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> Tensor:
        """The images with these numbers, in this order: uint8 [N, size, size, 3]."""
        if not len(indices):
            return self.images[0][:0]
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        rows = indices - self.starts[shards]
        # Ten times as fast as indexing a shard with a tensor of rows.
        return torch.stack([self.images[shard][row] for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)])


def _write_sealed(path: Path, value: dict[str, Any]) -> None:
    files.write_json(path, value | {"checksum": _checksum(value)})


def _unsealed(path: Path, remedy: str) -> dict[str, Any]:
    value = files.read_json(path, remedy)
    if not isinstance(value, dict) or value.pop("checksum", None) != _checksum(value):
        raise UserError(f"{path} is damaged, it differs from its checksum: {remedy}")
    return value


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _open(folder: Path, shard: dict[str, Any], remedy: str) -> dict[str, Tensor]:
    """The tensors of a shard, through a memory map, once they are known to be those that were written."""
    path = folder / shard["file"]
    if path.parent != folder or not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    if files.sha256(path) != shard["sha256"]:
        raise UserError(f"{path} is damaged, its checksum differs from the index: {remedy}")
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in ("images", "labels", "hashes", "rows")}
    except SafetensorError as error:
        raise UserError(f"{path} is not a shard ({error}): {remedy}") from None
