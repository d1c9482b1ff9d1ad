"""Which images make up which batch."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from image_classifier.core import runtime
from image_classifier.images.shards import ShardReader


def batches(
    split: ShardReader, batch_size: int, order: np.ndarray | None = None, index: int = 0, count: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images uint8 [N, size, size, 3], labels int64 [N]) in `order` (None = as stored).

    Of `count` processes that share each batch, this is number `index`; it gets its part alone.
    """
    order = np.arange(len(split)) if order is None else order
    for rows in deal(order, batch_size, index, count):
        yield split.gather(rows), split.labels[rows]


def num_batches(count: int, batch_size: int) -> int:
    """How many batches `count` images make."""
    return -(-count // batch_size)


def deal(order: np.ndarray, batch_size: int, index: int = 0, count: int = 1) -> list[np.ndarray]:
    """Split `order` into batches of at most `batch_size` whose sizes differ by one at most; return one process's part.

    `index` is the number of that process among `count`. With a `batch_size` of 3 or more no batch is a single image,
    over which batch norm may have nothing to average.
    """
    whole = np.array_split(order, num_batches(len(order), batch_size))
    return [np.array_split(batch, count)[index] for batch in whole]


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` items in an epoch: a function of (seed, epoch), with no state to restore."""
    return np.random.default_rng(runtime.derive_seed(seed, epoch)).permutation(count)
