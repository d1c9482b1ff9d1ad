"""From the rows of a source to shards: decode, screen, resize, on every core."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import torch
from torch import Tensor
from tqdm import tqdm

from image_classifier import preprocess, sources
from image_classifier.errors import UserError
from image_classifier.preprocess import Resize
from image_classifier.shards import ShardWriter
from image_classifier.splits import Screen

BATCH_SIZE = 256  # rows read from the source at a time, so that memory does not grow with it


def write(folder: Path, split: str, rows: datasets.Dataset, resize: Resize, screen: Screen) -> int:
    """Write the pictures of a split that `screen` admits.

    The bytes do not depend on the number of cores: threads decode and resize, in order.

    Args:
        rows: with the columns of `sources.load`.

    Returns:
        the number of pictures written.

    Raises:
        UserError: no picture of a class is left.
    """

    def make(image: dict | None, row: str) -> tuple[str, Tensor | None, bytes | str]:
        where = sources.location(image, row)
        try:
            picture = preprocess.decode(sources.read(image))
        except preprocess.UnreadableImage as error:
            return where, None, str(error)
        except OSError as error:
            return where, None, error.strerror
        return where, resize(picture), preprocess.digest(picture)

    torch.set_num_threads(1)  # one picture per thread is faster than one picture on all
    writer = ShardWriter(folder, resize)
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
        tqdm(total=len(rows), desc=split, unit=" images", leave=False, disable=None) as bar,
    ):
        for part in rows.iter(BATCH_SIZE):
            made = threads.map(make, part["image"], part["row"])
            for (where, picture, found), label in zip(made, part["label"], strict=True):
                if picture is None:
                    screen.reject(split, where, found)
                elif screen.admit(split, where, found):
                    writer.add(picture, label, found)
                bar.update()
    names = sources.class_names(rows)
    if missing := [name for label, name in enumerate(names) if not writer.counts[label]]:
        screen.conclude()  # which may say why
        raise UserError(f"no picture of the class {', '.join(missing[:5])} is left in {split}")
    return writer.close(names, screen.findings(split))
