"""How training images reach the device."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import deal
from image_classifier.training.distributed import Group


class Feed:
    """The batches of a split for one device: from memory on a CPU, from the GPU's own memory, or fetched ahead."""

    def __init__(self, split: ShardReader, device: torch.device):
        self.split, self.device, self.on_gpu = split, device, device.type == "cuda"
        self.resident: tuple[Tensor, Tensor] | None = None
        # A quarter of a GPU's free memory may hold the training set; the rest is for activations.
        if self.on_gpu and sum(images.nbytes for images in split.images) <= torch.cuda.mem_get_info()[0] / 4:
            self.resident = torch.cat([images.to(device) for images in split.images]), split.labels.to(device)

    def batches(
        self, batch_size: int, order: np.ndarray, group: Group, draws: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield this process's part of each batch: images uint8 [N, size, size, 3], labels int64 [N], draws.

        `draws` has a row for each place in the order, of which those of the batch come with it.
        """
        parts = deal(order, batch_size, group.index, group.count)
        sizes = [len(part) for part in parts]
        own_draws: Iterable[Tensor | None] = repeat(None)
        if draws is not None:
            places = np.concatenate(deal(np.arange(len(order)), batch_size, group.index, group.count))
            own_draws = self._once(draws[places]).split(sizes)
        for (images, labels), drawn in zip(self._images(parts), own_draws, strict=False):
            yield images, labels, drawn

    def _images(self, parts: list[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.resident is None:
            own = ((self.split.gather(part), self.split.labels[part]) for part in parts)
            yield from prefetched(own) if self.on_gpu else own
            return
        images, labels = self.resident
        for rows in self._once(torch.from_numpy(np.concatenate(parts))).split([len(part) for part in parts]):
            yield images[rows], labels[rows]

    def _once(self, values: Tensor) -> Tensor:
        """What a whole epoch needs, on the device: each copy waits for it."""
        return values.to(self.device)


def prefetched(own: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches in pinned memory, which a GPU copies without waiting; a thread gathers the next one."""

    def load() -> tuple[Tensor, Tensor] | None:
        batch = next(own, None)
        return (batch[0].pin_memory(), batch[1].pin_memory()) if batch and torch.cuda.is_available() else batch

    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(load)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(load)
            yield batch
