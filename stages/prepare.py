"""prepare: raw images -> data/shards/{train,val,test}."""

import sys
from contextlib import ExitStack
from pathlib import Path

from image_classifier.core import config, files
from image_classifier.core.entry import exit_with, took
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardWriter
from image_classifier.preparation import sources, splits
from image_classifier.preparation.screen import Screen
from image_classifier.preparation.write import (
    check_counts,
    contradictory_digests,
    resume_key,
    write_indexes,
    write_split,
)

SHARDS, SCRATCH = Path("data/shards"), Path("data/.source")


@files.lock(".resume/prepare.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Load the source, split it, and stream each split into uint8 shards: all three or none."""
    print(f"prepare: {sys.executable}")
    params = config.load()
    resize = Resize(params.data.image_size, params.data.resize, params.data.background)
    writers: dict[str, ShardWriter] = {}
    # A killed run leaves its scratch tables behind; `datasets` would reuse them even if the source changed.
    files.remove(SCRATCH)
    with ExitStack() as finished:
        finished.callback(files.remove, SCRATCH)
        source = sources.load(params.data, SCRATCH)
        key = resume_key(params.data, params.seed)
        parts = splits.split(source, params.data, params.seed)
        drops = params.data.on_contradiction == "drop"
        screen = Screen(params.data, contradictory_digests(parts, resize) if drops else None)
        for name, rows in parts.items():
            folder = finished.enter_context(files.resumable(SHARDS / name, key))
            size = params.data.subset_size if name == "train" else None
            writers[name] = write_split(folder, name, rows, resize, screen, size)
        screen.conclude()
        counts = write_indexes(writers, parts)
        check_counts(counts, params.data.subset_size)
    written = ", ".join(f"{name} {found.total()}" for name, found in counts.items())
    print(f"prepare: {SHARDS}: {written} images of {resize.size} px; {took()}")


if __name__ == "__main__":
    exit_with(main)
