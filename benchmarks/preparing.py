"""Decoding and resizing: prepare's functions on threads against a PIL loop on processes.

    python -m benchmarks.preparing

Both decode the same 4,096 PNG images of 32 x 32 and resize them to 160 px into one array, on all
cores. "prepare, written" is the whole of `preparation.write`: also hashing the pixels, screening
duplicates and writing shards with their checksums.
"""

import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Process, shared_memory
from pathlib import Path

import numpy as np

from benchmarks import pairs
from benchmarks.images import CLASSES, images
from image_classifier.core import config, runtime
from image_classifier.images.resize import Resize
from image_classifier.preparation.screen import Screen
from image_classifier.preparation.write import TASK_SIZE, decode_rows, write_split

COLUMNS = pairs.columns("images/s", "PIL loop")
COUNT, SIZE = 4096, 160
WORKERS = runtime.cpus()


def threads() -> float:
    """Images per second of decode and resize as prepare does them, the hash of the pixels included."""
    import torch

    torch.set_num_threads(1)
    files, resize = images(COUNT), Resize(SIZE, "stretch")
    made = torch.empty((COUNT, SIZE, SIZE, 3), dtype=torch.uint8)

    def make(start: int) -> None:
        rows = [({"bytes": data, "path": None}, 0, "") for data in files[start : start + TASK_SIZE]]
        for number, found in enumerate(decode_rows(resize, rows)):
            assert found.pixels is not None
            made[start + number] = found.pixels

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(make, range(0, 256, TASK_SIZE)))  # the first images also load the decoder
        start = time.perf_counter()
        list(pool.map(make, range(0, COUNT, TASK_SIZE)))
    return COUNT / (time.perf_counter() - start)


def processes() -> float:
    """Images per second of a PIL loop in each of as many processes."""
    files = images(COUNT)
    made = shared_memory.SharedMemory(create=True, size=COUNT * SIZE * SIZE * 3)
    seconds = shared_memory.SharedMemory(create=True, size=8 * WORKERS)
    try:
        workers = [Process(target=_pil_loop, args=(files, n, made.name, seconds.name)) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        return COUNT / np.ndarray(WORKERS, np.float64, seconds.buf).max()
    finally:
        for memory in (made, seconds):
            memory.close()
            memory.unlink()


def _pil_loop(files: list[bytes], worker: int, made_name: str, seconds_name: str) -> None:
    from PIL import Image

    made, seconds = shared_memory.SharedMemory(made_name), shared_memory.SharedMemory(seconds_name)
    array = np.ndarray((COUNT, SIZE, SIZE, 3), np.uint8, made.buf)

    def make(number: int) -> None:
        image = Image.open(io.BytesIO(files[number])).convert("RGB")
        array[number] = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    for number in range(worker, 256, WORKERS):
        make(number)
    start = time.perf_counter()
    for number in range(worker, COUNT, WORKERS):
        make(number)
    np.ndarray(WORKERS, np.float64, seconds.buf)[worker] = time.perf_counter() - start


def written() -> float:
    """Images per second of `preparation.write`, everything included."""
    import datasets

    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": data, "path": None} for data in images(COUNT)],
            "label": [number % len(CLASSES) for number in range(COUNT)],
            "row": [f"row {number} of train" for number in range(COUNT)],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(decode=False),
                "label": datasets.ClassLabel(names=CLASSES),
                "row": datasets.Value("string"),
            }
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        params = config.load(pairs.ROOT / "params.yaml")
        screen = Screen(params.data)
        write_split(Path(folder) / "train", "train", rows, Resize(SIZE, "stretch"), screen)
        return COUNT / (time.perf_counter() - start)


if __name__ == "__main__":
    ways = {"prepare": threads, "prepare, written": written, "PIL loop": processes}
    pairs.main("Preparing: decode and resize", "images/s", ways, ["torch", "pillow"])
