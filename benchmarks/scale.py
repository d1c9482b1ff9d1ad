"""Many images: does the rate, or the memory, of prepare and of train's reader change as they come in?

    python -m benchmarks.scale

200,000 generated images of 32 x 32, as PNG in one parquet file, go through what the prepare stage does and then, in
another process, through one shuffled epoch of what the train stage reads. Every tenth is measured by itself.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import pairs, records
from image_classifier.core import config, runtime
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader, ShardWriter
from image_classifier.model.batches import batches, shuffled
from image_classifier.model.normalize import Normalize
from image_classifier.preparation import sources
from image_classifier.preparation.screen import Screen
from image_classifier.preparation.write import decode_rows, write_split

NAMES = [str(digit) for digit in range(10)]  # classes
COUNT, SIZE, BATCH_SIZE, PARTS = 200_000, 32, 128, 10
COLUMNS = ("of the images", "prepare, images/s", "its memory, MiB", "reading, images/s", "its memory, MiB")


def main() -> None:
    """Measure both in processes of their own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, folder = arguments.one
        os.chdir(folder)
        print(json.dumps({"prepare": prepare, "read": read}[way]()))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data/raw/generated")
        measured = {}
        for way in ("prepare", "read"):
            print(f"scale: {way}", file=sys.stderr)
            measured[way] = pairs.alone("scale", "--one", way, folder)
        size = sum(path.stat().st_size for path in Path(folder, "shards").iterdir())
    rows = []
    for part, (write, readout) in enumerate(zip(measured["prepare"], measured["read"], strict=True), 1):
        cells = [f"{found[name]:,.0f}" for found in (write, readout) for name in ("rate", "mib")]
        rows.append([f"{part / PARTS:.0%}", *cells])
    note = f"{size / COUNT:,.0f} bytes an image. Memory is the process's own, without the page cache. "
    note += f"Decoding photos of 500 x 375 px (JPEG) and resizing them to 160 px: {photos():,.0f} images/s."
    name, title = "scale" if arguments.record else None, f"{COUNT:,} images of {SIZE} px"
    records.publish(name, title, "python -m benchmarks.scale", ["torch", "datasets"], COLUMNS, rows, note)


def generate(folder: Path) -> None:
    """Write a parquet file of noise with a color to each class, in row groups, with no two images the same."""
    import datasets
    import numpy as np
    from PIL import Image

    def rows() -> Iterator[dict]:
        random = np.random.default_rng(0)
        for number in range(COUNT):
            pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) // 4 + 19 * (number % 10)
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % 10}

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        table = datasets.Dataset.from_generator(rows, features=features, cache_dir=scratch)
        table.to_parquet(folder / "train.parquet")


class Parts:
    """Rate and memory of every tenth of the images, as they are counted."""

    def __init__(self, count: int):
        self.count, self.seen, self.start = count, 0, time.perf_counter()
        self.measured: list[dict[str, float]] = []

    def add(self, images: int) -> None:
        """Count images."""
        self.seen += images
        while self.seen >= self.count * (len(self.measured) + 1) / PARTS and len(self.measured) < PARTS:
            now = time.perf_counter()
            rate, self.start = self.count / PARTS / (now - self.start), now
            self.measured.append({"rate": rate, "mib": pairs.own_memory()})


def prepare() -> list[dict[str, float]]:
    """Stream the source into shards as the stage does."""

    runtime.configure(None)
    changes = {"source": "data/raw/generated", "image_size": SIZE}
    data = config.load(pairs.ROOT / "params.yaml").data.model_copy(update=changes)
    source = sources.load(data, Path("scratch"))
    parts = Parts(COUNT)
    setattr(ShardWriter, "add", _counted(ShardWriter.add, parts))  # noqa: B010 (mypy)
    writer = write_split(Path("shards"), "train", source["train"], Resize(SIZE, "stretch"), Screen(data))
    writer.close(NAMES)
    return parts.measured


def photos() -> float:
    """Images per second of decode and resize on all cores, of photos of ImageNet's usual size."""
    import numpy as np
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (25, 33, 3), dtype=np.uint8)).resize((500, 375))
    noisy = np.clip(np.asarray(smooth) + random.integers(-12, 13, (375, 500, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, format="JPEG", quality=90)
    rows, resize = [({"bytes": buffer.getvalue(), "path": None}, 0, "")] * 64, Resize(160, "stretch")
    with ThreadPoolExecutor(runtime.cpus()) as pool:
        start = time.perf_counter()
        made = list(pool.map(lambda _: len(decode_rows(resize, rows)), range(32)))
    return sum(made) / (time.perf_counter() - start)


def _counted(add: Callable, parts: Parts) -> Callable:
    def counted(self: ShardWriter, *arguments: Any) -> None:
        add(self, *arguments)
        parts.add(1)

    return counted


def read() -> list[dict[str, float]]:
    """One epoch of shuffled, normalized batches as the train stage reads them."""

    runtime.configure(None)
    reader, normalize = ShardReader("shards"), Normalize()
    parts = Parts(len(reader))
    for images, _ in batches(reader, BATCH_SIZE, shuffled(len(reader), 0, 0)):
        normalize(images)
        parts.add(len(images))
    return parts.measured


if __name__ == "__main__":
    main()
