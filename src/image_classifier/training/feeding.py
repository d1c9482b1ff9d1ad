"""How training images reach the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches, deal
from image_classifier.training.distributed import Group


class Feed:
    """The batches of a split for one device: from memory on a CPU, from the GPU's own memory, or fetched ahead."""

    def __init__(self, split: ShardReader, device: torch.device):
        self.split, self.on_gpu = split, device.type == "cuda"
        self.resident: tuple[Tensor, Tensor] | None = None
        # A quarter of a GPU's free memory may hold the training set; the rest is for activations.
        if self.on_gpu and sum(images.nbytes for images in split.images) <= torch.cuda.mem_get_info()[0] / 4:
            self.resident = torch.cat([images.to(device) for images in split.images]), split.labels.to(device)

    def batches(self, batch_size: int, order: np.ndarray, group: Group) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 [N, size, size, 3], labels int64 [N]) in `order`: this process's part of each batch."""
        if self.resident is None:
            own = batches(self.split, batch_size, order, group.index, group.count)
            yield from prefetched(own) if self.on_gpu else own
            return
        images, labels = self.resident
        parts = deal(order, batch_size, group.index, group.count)
        rows = torch.from_numpy(np.concatenate(parts)).to(images.device)  # once: each copy waits for the device
        for part in rows.split([len(part) for part in parts]):
            yield images[part], labels[part]


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
