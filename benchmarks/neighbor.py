"""Training beside a process that keeps one core busy: MobileViT-Small at 160 px, batch 16, in this machine's format.

    python -m benchmarks.neighbor

Each way is measured alone and beside the neighbor, in turn, in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import records
from benchmarks.images import write_made_shards

COLUMNS = ("way", "images/s alone, median", "beside a busy process", "share kept")
WAYS: dict[str, tuple[int, dict[str, str]]] = {  # threads, environment
    "two threads": (2, {}),
    "two threads, OMP_WAIT_POLICY=passive": (2, {"OMP_WAIT_POLICY": "passive"}),
    "one thread": (1, {}),
}
SIZE, BATCH_SIZE, BATCHES, SECONDS, ROUNDS = 160, 16, 8, 12, 3


def main() -> None:
    """Run every way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.threads:
        print(json.dumps(rate(arguments.threads)))
        return
    measured: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(ROUNDS):
        for way, busy in measured:
            threads, environment = WAYS[way]
            words = [sys.executable, "-m", "benchmarks.neighbor", "--threads", str(threads)]
            neighbor = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
            try:
                output = subprocess.run(
                    words, cwd=records.ROOT, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
                ).stdout
            finally:
                if neighbor:
                    neighbor.kill()
                    neighbor.wait()
            measured[way, busy].append(json.loads(output.splitlines()[-1]))
            print(f"neighbor: {way}, busy: {busy}: {measured[way, busy][-1]:.1f} images/s", file=sys.stderr)
    rows = []
    for way in WAYS:
        alone, beside = (statistics.median(measured[way, busy]) for busy in (False, True))
        rows.append([way, f"{alone:.1f}", f"{beside:.1f}", f"{beside / alone:.0%}"])
    name = "neighbor" if arguments.record else None
    title = "Training beside a process that keeps one of two cores busy"
    records.publish(name, title, "python -m benchmarks.neighbor", ["torch", "transformers"], COLUMNS, rows)


def rate(threads: int) -> float:
    """Images per second of training, after a first step."""
    from image_classifier.core import config, runtime
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches
    from image_classifier.training.build import build_network, input_normalization
    from image_classifier.training.trainer import Trainer

    runtime.configure(threads)
    params = config.load(records.ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", BATCH_SIZE * BATCHES, SIZE)
        reader = ShardReader(Path(folder) / "train")
        network = build_network(params.model, reader.class_names, SIZE, seed=0)
        normalize = input_normalization("imagenet", params.model)
        trainer = Trainer(network, normalize, numerics.resolve("cpu", "auto"), params.training, 0, reader, reader)
        network.train()
        count, start = -1, 0.0
        while count < 0 or time.perf_counter() - start < SECONDS:
            for images, labels in batches(reader, BATCH_SIZE):
                trainer.stepper.step(images, labels, seed=0, size=SIZE)
                count += 1
                start = start or time.perf_counter()
        return count * BATCH_SIZE / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
