"""Preprocessed pictures on disk: written once in a stream, read through a memory map.

A split is a folder of `shard-00000.safetensors`, ... with `images` uint8 [N, size, size, 3]
(height, width, RGB), `labels` int64 [N] and `hashes` uint8 [N, 32] (SHA-256 of the decoded source
picture), and an `index.json`, written last, with counts, class names and checksums. Equal inputs
give equal bytes.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from image_classifier import files
from image_classifier.errors import UserError
from image_classifier.preprocess import Resize
from image_classifier.runtime import derive_seed

SHARD_SIZE = 1024  # pictures: 79 MB at 160 px
REMEDY = "run `dvc repro prepare` to make it again"


class ShardWriter:
    """Streams pictures into shards, holding one shard in memory at a time."""

    def __init__(self, folder: Path, resize: Resize, shard_size: int = SHARD_SIZE):
        self.folder, self.resize = folder, resize
        folder.mkdir(parents=True)
        self.images = torch.empty((shard_size, resize.size, resize.size, 3), dtype=torch.uint8)
        self.labels = torch.empty(shard_size, dtype=torch.int64)
        self.hashes = torch.empty((shard_size, 32), dtype=torch.uint8)
        self.filled = 0
        self.counts: Counter[int] = Counter()  # pictures of each label
        self.shards: list[dict[str, Any]] = []

    def add(self, image: Tensor, label: int, digest: bytes) -> None:
        """Append one picture: uint8 [size, size, 3], its class, and its SHA-256."""
        self.images[self.filled] = image
        self.labels[self.filled] = label
        self.hashes[self.filled] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        self.filled += 1
        self.counts[label] += 1
        if self.filled == len(self.images):
            self._flush()

    def close(self, class_names: list[str], findings: dict[str, list[str]]) -> int:
        """Write the last shard and then the index, which makes the folder readable; return how many pictures.

        `findings` are what a reader should know about the pictures, such as those left out.
        """
        if self.filled:
            self._flush()
        count = self.counts.total()
        index = {
            "class_counts": {name: self.counts[label] for label, name in enumerate(class_names)},
            "class_names": class_names,
            "count": count,
            "findings": findings,
            "preprocessing": {"mode": "RGB", "resize": self.resize.mode, "size": self.resize.size},
            "shards": self.shards,
        }
        files.write_json(self.folder / "index.json", index)
        return count

    def _flush(self) -> None:
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        tensors = {"images": self.images, "labels": self.labels, "hashes": self.hashes}
        with files.atomic(path) as unfinished:
            # More than one metadata key would come out in another order in every process.
            save_file({k: v[: self.filled] for k, v in tensors.items()}, unfinished, metadata={"format": "pt"})
        self.shards.append({"count": self.filled, "file": path.name, "sha256": files.sha256(path)})
        self.filled = 0


class ShardReader:
    """A split's pictures by number, through a memory map.

    Raises:
        UserError: a file is missing, or is not the one that prepare wrote.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        index = files.read_json(folder / "index.json", REMEDY)
        self.class_names: list[str] = index["class_names"]
        self.resize = Resize(index["preprocessing"]["size"], index["preprocessing"]["resize"])
        self.images: list[Tensor] = []
        labels, hashes = [], []
        for shard in index["shards"]:
            path = folder / shard["file"]
            if not path.is_file():
                raise UserError(f"{path} is missing: {REMEDY}")
            if files.sha256(path) != shard["sha256"]:
                raise UserError(f"{path} is damaged, its checksum differs from the index: {REMEDY}")
            with safe_open(path, framework="pt") as tensors:
                self.images.append(tensors.get_tensor("images"))
                labels.append(tensors.get_tensor("labels"))
                hashes.append(tensors.get_tensor("hashes"))
        self.labels = torch.cat(labels)
        self.hashes = [bytes(row).hex() for row in torch.cat(hashes).numpy()]
        self.starts = np.cumsum([0] + [len(images) for images in self.images])

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, indices: np.ndarray) -> Tensor:
        """The pictures with these numbers, in this order: uint8 [N, size, size, 3]."""
        batch = torch.empty((len(indices), *self.images[0].shape[1:]), dtype=torch.uint8)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        for shard in np.unique(shards):
            (rows,) = np.nonzero(shards == shard)
            batch[rows] = self.images[shard][indices[rows] - self.starts[shard]]
        return batch

    def batches(self, batch_size: int, order: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 [N, size, size, 3], labels int64 [N]) in `order` (None = as stored).

        Batches have at most `batch_size` pictures and differ by one at most: a last batch of a
        single picture would leave batch norm nothing to average over.
        """
        order = np.arange(len(self)) if order is None else order
        for indices in np.array_split(order, num_batches(len(order), batch_size)):
            yield self.gather(indices), self.labels[indices]


class ResidentShards:
    """All of a split in a device's memory, where a batch costs one indexing and no copy."""

    def __init__(self, reader: ShardReader, device: torch.device):
        self.images = torch.empty((len(reader), *reader.images[0].shape[1:]), dtype=torch.uint8, device=device)
        for start, images in zip(reader.starts, reader.images, strict=False):
            self.images[start : start + len(images)] = images.to(device)
        self.labels = reader.labels.to(device)

    def batches(self, batch_size: int, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `ShardReader.batches`, on the device."""
        rows = torch.from_numpy(order).to(self.images.device)  # once: each copy waits for the device
        for part in rows.tensor_split(num_batches(len(order), batch_size)):
            yield self.images[part], self.labels[part]


def prefetched(batches: Iterator[tuple[Tensor, Tensor]], pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches, the next one gathered by a thread meanwhile; `pin` spares a GPU the wait for copies."""

    def load() -> tuple[Tensor, ...] | None:
        batch = next(batches, None)
        return tuple(part.pin_memory() for part in batch) if batch and pin else batch

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(load)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(load)
            yield batch


def num_batches(count: int, batch_size: int) -> int:
    """How many batches `count` pictures make."""
    return -(-count // batch_size)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` items in an epoch: a function of (seed, epoch), with no state to restore."""
    return np.random.default_rng(derive_seed(seed, epoch)).permutation(count)
