"""From the rows of a source to shards: decode, screen, resize, on every core."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import datasets
import torch
from tqdm import tqdm

from image_classifier import preprocess, runtime, sources
from image_classifier.config import Data
from image_classifier.errors import UserError
from image_classifier.preprocess import Resize
from image_classifier.shards import ShardWriter
from image_classifier.splits import Screen

TASK_SIZE = 64  # pictures that a thread takes at a time
SMALL = 128 * 128  # pixels: up to here a picture is resized together with others of its size


def fingerprint(data: Data, seed: int) -> str:
    """A hash of all that decides the shards, to tell whether unfinished ones may be gone on with."""
    pictures = Path(data.source).rglob("*") if data.source.startswith(sources.LOCAL) else ()
    states = [(str(path), path.lstat().st_size, path.lstat().st_ctime_ns) for path in sorted(pictures)]
    return runtime.fingerprint(
        [data.model_dump(), seed, states], ["datasets", "pillow", "torch", "numpy", "scikit-learn"]
    )


def write(
    folder: Path, split: str, rows: datasets.Dataset, resize: Resize, screen: Screen, size: int | None = None
) -> Counter[str]:
    """Write the pictures that `screen` admits, of rows with the columns of `sources.load`; count them by class.

    With `size`, as many of each class as its first `size` rows hold. Shards that `folder` holds
    already are kept. The bytes do not depend on that, nor on the number of cores: threads decode and
    resize, in order.
    """
    torch.set_num_threads(1)  # each thread resizes by itself
    cores = len(os.sched_getaffinity(0))
    writer = ShardWriter(folder, resize, screen.findings[split])
    for digest in writer.written():
        screen.seen.setdefault(digest, split)
    wanted = Counter(rows["label"][:size])
    with (
        ThreadPoolExecutor(cores) as threads,
        tqdm(total=wanted.total(), initial=writer.rows, desc=split, unit=" images", leave=False, disable=None) as bar,
    ):
        rest = rows.skip(writer.rows) if writer.rows < len(rows) else rows.take(0)  # to skip all is refused
        for part in rest.iter(2 * cores * TASK_SIZE):  # so memory does not grow with the source
            if writer.counts == wanted and not writer.findings["unreadable"]:
                break  # otherwise every unreadable picture of the source is named
            starts = range(0, len(part["row"]), TASK_SIZE)
            tasks = ([part[name][start : start + TASK_SIZE] for start in starts] for name in ("image", "row"))
            made = chain.from_iterable(threads.map(partial(make, resize), *tasks))
            for (where, picture, found), label in zip(made, part["label"], strict=True):
                writer.rows += 1
                if picture is None:
                    writer.findings["unreadable"].append(f"{where}: {found}")
                elif writer.counts[label] == wanted[label]:
                    continue  # a picture in reserve, not needed
                elif screen.admit(split, where, found):
                    writer.add(picture, label, found)
                bar.update()
    names = sources.class_names(rows)
    writer.close(names)
    return Counter({name: writer.counts[label] for label, name in enumerate(names)})


def check(counts: dict[str, Counter[str]], size: int | None) -> None:
    """Refuse splits without a class, and a training split that fell short of `size`, data.subset_size.

    Raises UserError: what was left out is missed.
    """
    for split, found in counts.items():
        if missing := [name for name, count in found.items() if not count]:
            raise UserError(f"no picture of the class {', '.join(missing[:5])} is left in {split}")
    train = counts["train"]
    if size is not None and train.total() < size:
        name, least = train.most_common()[-1]
        raise UserError(
            f"data.subset_size = {size}, but {least} pictures of the class {name} are left in train: choose "
            f"{least * len(train)} or less, which keeps the classes in balance"
        )


def make(resize: Resize, images: Sequence[dict | None], rows: Sequence[str]) -> list[list]:
    """Decode and resize: where each picture was found, itself or None, and its digest or what is wrong with it.

    Small pictures are resized together: one by one, threads would hold each other up at Python's
    lock. Large ones are resized as they come, so that each thread holds one of them at a time.
    """
    made, waiting = [], defaultdict(list)
    for image, row in zip(images, rows, strict=True):
        where = sources.location(image, row)
        try:
            picture = preprocess.decode(sources.read(image))
        except (preprocess.UnreadableImage, OSError) as error:
            made.append([where, None, getattr(error, "strerror", None) or str(error)])
            continue
        small = picture.width * picture.height <= SMALL
        made.append([where, None if small else resize(picture), preprocess.digest(picture)])
        if small:
            waiting[picture.size].append((made[-1], picture))
    for group in waiting.values():
        resized = resize.many([picture for _, picture in group])
        for (entry, _), pixels in zip(group, resized, strict=True):
            entry[1] = pixels
    return made
