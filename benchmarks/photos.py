"""Prepare on photos: JPEG of 12 megapixels and of 500 x 375, against what their decoder alone does on as many cores.

    python -m benchmarks.photos

Duplicates are found by hashing every pixel, so that JPEG files cannot be decoded at a reduced size. "prepare" is the
whole of `preparation.write`: also hashing, resizing, screening and writing shards. The decoder alone is Pillow's
(libjpeg-turbo) in a process for each core. Both read the same files.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import pairs, records
from benchmarks.images import CLASSES
from image_classifier.core import config, runtime
from image_classifier.images.resize import Resize
from image_classifier.preparation.screen import Screen
from image_classifier.preparation.write import write_split

COLUMNS = ("photos", "prepare, images/s", "decoder alone, images/s", "share", "peak memory of prepare, GiB")
KINDS = {"12 megapixels": (4000, 3000, 400), "500 x 375": (500, 375, 2000)}  # width, height, number
PHOTOS = Path("data/raw/photos")  # where prepare reads files from
QUALITY, SIZE, ROUNDS = 90, 160, 3


def write_photos(folder: Path, width: int, height: int, count: int) -> None:
    """Write JPEG files of smooth colors with grain."""
    random = np.random.default_rng(0)
    grain = random.integers(-10, 11, (height, width, 1), dtype=np.int16)
    folder.mkdir(parents=True)
    for number in range(count):
        smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
        pixels = np.clip(np.asarray(smooth, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.jpg", quality=QUALITY)


def prepare(paths: list[Path]) -> float:
    """Images per second of `preparation.write`, everything included."""
    import datasets

    columns = {
        "image": [{"bytes": None, "path": str(path)} for path in paths],
        "label": [number % len(CLASSES) for number in range(len(paths))],
        "row": [f"row {number} of train" for number in range(len(paths))],
    }
    kinds = datasets.Image(decode=False), datasets.ClassLabel(names=CLASSES), datasets.Value("string")
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(dict(zip(columns, kinds, strict=True))))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        screen = Screen(config.load(records.ROOT / "params.yaml").data)
        writer = write_split(Path(folder) / "train", "train", rows, Resize(SIZE, "stretch"), screen)
        assert writer.counts.total() == len(paths)
        return len(paths) / (time.perf_counter() - start)


def _decode(paths: list[Path]) -> float:
    start = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return time.perf_counter() - start


def decoder(paths: list[Path]) -> float:
    """Images per second of the decoder in a process for each core."""
    cores = runtime.cpus()
    with Pool(cores) as pool:
        return len(paths) / max(pool.map(_decode, [paths[core::cores] for core in range(cores)], chunksize=1))


def main() -> None:
    """Run both ways on both kinds in turn, each in its own process, and print the table."""
    ways = {way.__name__: way for way in (decoder, prepare)}
    arguments = pairs.parsed(__doc__, ways)
    if arguments.way:
        rate = ways[arguments.way](sorted(PHOTOS.iterdir()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB to GiB
        print(json.dumps({"rate": rate, "peak": peak}))
        return
    rows = []
    for kind, (width, height, count) in KINDS.items():
        measured: dict[str, list[dict]] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder) / PHOTOS, width, height, count)
            for way in [*ways] * ROUNDS:
                command = [sys.executable, "-m", "benchmarks.photos", way]
                environment = os.environ | {"PYTHONPATH": f"{records.ROOT}:{records.ROOT / 'src'}"}
                output = subprocess.run(
                    command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
                measured[way].append(json.loads(output.splitlines()[-1]))
        ours, alone = measured["prepare"], measured["decoder"]
        shares = [mine["rate"] / theirs["rate"] for mine, theirs in zip(ours, alone, strict=True)]
        rates = [f"{statistics.median(run['rate'] for run in runs):,.4g}" for runs in (ours, alone)]
        share = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        rows.append([f"{count:,} JPEG, {kind}", *rates, share, f"{max(run['peak'] for run in ours):.1f}"])
    name = "photos" if arguments.record else None
    records.publish(name, "Preparing photos", "python -m benchmarks.photos", ["torch", "pillow"], COLUMNS, rows)


if __name__ == "__main__":
    main()
