"""prepare: raw pictures -> data/shards/{train,val,test}."""

import sys
from contextlib import ExitStack
from pathlib import Path

from image_classifier import config, files, preparation, sources, splits
from image_classifier.errors import run
from image_classifier.preprocess import Resize
from image_classifier.shards import ShardWriter
from stages import took

SHARDS, SCRATCH = Path("data/shards"), Path("data/.source")


@files.lock(".resume/prepare.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Load the source, split it, and stream each split into uint8 shards: all three or none."""
    print(f"prepare: {sys.executable}")
    params = config.load()
    resize = Resize(params.data.image_size, params.data.resize, params.data.background)
    writers: dict[str, ShardWriter] = {}
    files.remove(SCRATCH)  # of a killed run: `datasets` would take a changed file with its old time for the same
    with ExitStack() as finished:
        finished.callback(files.remove, SCRATCH)
        source = sources.load(params.data, SCRATCH)
        key = preparation.fingerprint(params.data, params.seed)
        parts = splits.split(source, params.data, params.seed)
        drops = params.data.on_contradiction == "drop"
        screen = splits.Screen(params.data, preparation.contradictory(parts, resize) if drops else None)
        for name, rows in parts.items():
            folder = finished.enter_context(files.resumable(SHARDS / name, key))
            size = params.data.subset_size if name == "train" else None
            writers[name] = preparation.write(folder, name, rows, resize, screen, size)
        screen.conclude()
        counts = preparation.finish(writers, parts)
        preparation.check(counts, params.data.subset_size)
    written = ", ".join(f"{name} {found.total()}" for name, found in counts.items())
    print(f"prepare: {SHARDS}: {written} images of {resize.size} px; {took()}")


if __name__ == "__main__":
    run(main)
