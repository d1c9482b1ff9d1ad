"""Images to measure with: made here, like CIFAR-10's files in size and format, or of a folder of its own."""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = [str(number) for number in range(10)]


def images(count: int) -> list[bytes]:
    """PNG files of 32 x 32 pixels: smooth colors with some noise, so that they compress as photos do."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        smooth = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
        noise = random.integers(-12, 13, (32, 32, 3))
        pixels = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def write_made_shards(folder: Path, count: int, size: int) -> None:
    """Write `count` such images as shards, their classes in turn."""
    from image_classifier.images.resize import Resize
    from image_classifier.images.shards import ShardWriter
    from image_classifier.preparation import decode

    resize = Resize(size, "stretch")
    writer = ShardWriter(folder, resize)
    for number, data in enumerate(images(count)):
        writer.add(resize(decode.decode(data)), number % len(CLASSES), bytes(32), number)
    writer.close(CLASSES)


def write_shards(
    parquet: Path,
    folder: Path,
    parts: dict[str, tuple[int, int]],
    size: int,
    keep: Callable[[int, int], bool] | None = None,
) -> None:
    """Write parts of train.parquet and test.parquet as shards: name -> first row and number, of shuffled rows.

    The part `test` is of the test file, others are of the training file. In the part `train` only those images are
    written that `keep` keeps, given their class and the number of its images written so far.
    """
    import datasets

    from image_classifier.images.resize import Resize
    from image_classifier.images.shards import ShardWriter
    from image_classifier.preparation import decode

    source = datasets.load_dataset(str(parquet), cache_dir=str(folder / "tables"))
    (image,) = [name for name, kind in source["train"].features.items() if isinstance(kind, datasets.Image)]
    (label,) = [name for name, kind in source["train"].features.items() if isinstance(kind, datasets.ClassLabel)]
    source, resize = source.cast_column(image, datasets.Image(decode=False)), Resize(size, "stretch")
    for name, (first, count) in parts.items():
        rows = source["test" if name == "test" else "train"].shuffle(seed=0).select(range(first, first + count))
        writer = ShardWriter(folder / name, resize)
        counts: Counter[int] = Counter()
        for number, row in enumerate(rows):
            if name == "train" and keep is not None and not keep(row[label], counts[row[label]]):
                continue
            counts[row[label]] += 1
            writer.add(resize(decode.decode(row[image]["bytes"])), row[label], bytes(32), number)
        writer.close(rows.features[label].names)
