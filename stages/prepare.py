"""prepare: raw pictures -> data/shards/{train,val,test}."""

import sys
from contextlib import ExitStack
from pathlib import Path

from image_classifier import config, files, preparation, sources, splits
from image_classifier.errors import run
from image_classifier.preprocess import Resize

SHARDS = Path("data/shards")


def main() -> None:
    """Load the source, split it, and stream each split into uint8 shards: all three or none."""
    print(f"prepare: {sys.executable}")
    params = config.load()
    resize = Resize(params.data.image_size, params.data.resize)
    screen = splits.Screen(params.data)
    counts = {}
    with files.scratch(Path("data/.source")) as scratch, ExitStack() as finished:
        source = sources.load(params.data, scratch)
        for name, rows in splits.split(source, params.data, params.seed).items():
            folder = finished.enter_context(files.atomic(SHARDS / name))
            counts[name] = preparation.write(folder, name, rows, resize, screen)
        screen.conclude()
    for name, count in counts.items():
        print(f"prepare: {name}: {count} pictures of {resize.size} px in {SHARDS / name}")


if __name__ == "__main__":
    run(main)
