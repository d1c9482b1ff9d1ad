"""prepare: raw pictures -> data/shards/{train,val,test}."""

import sys
from pathlib import Path

from image_classifier import config, files, shards, sources, splits
from image_classifier.errors import run

SHARDS = Path("data/shards")


def main() -> None:
    """Load the source, split it, and stream each split into uint8 shards."""
    print(f"prepare: {sys.executable}")
    params = config.load()
    source = sources.load(params.data)
    for name, rows in splits.split(source, params.data, params.seed).items():
        with files.atomic(SHARDS / name) as folder:
            count = shards.write(folder, rows, sources.class_names(rows), params.data.image_size, title=name)
        print(f"prepare: {name}: {count} pictures of {params.data.image_size} px in {SHARDS / name}")


if __name__ == "__main__":
    run(main)
