"""Training beside a process that keeps one core busy: MobileViT-Small at 160 px, batch 8, in this machine's format.

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

import torch

from benchmarks import records
from benchmarks.images import write_made_shards
from image_classifier.core import config, runtime
from image_classifier.images.shards import ShardReader
from image_classifier.model import numerics
from image_classifier.model.batches import batches
from image_classifier.training import distributed
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.trainer import Trainer

COLUMNS = ("way", "images/s alone, median", "beside a busy process", "share kept")
PASSIVE = {"OMP_WAIT_POLICY": "passive"}  # threads that wait sleep, instead of spinning first
WAYS: dict[str, tuple[int, int, dict[str, str]]] = {  # processes, threads of each, environment
    "two threads": (1, 2, {}),
    "two threads, OMP_WAIT_POLICY=passive": (1, 2, PASSIVE),
    "two processes of one thread": (2, 1, {}),
    "one thread": (1, 1, {}),
}
SIZE, BATCH_SIZE, STEPS, ROUNDS = 160, 8, 40, 3  # steps that are counted, after a first one


def main() -> None:
    """Run every way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.worker:
        with distributed.joined("neighbor", torch.device("cpu")) as group:
            print(json.dumps(rate(arguments.worker, group)))
        return
    measured: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(ROUNDS):
        for way, busy in measured:
            processes, threads, environment = WAYS[way]
            words = [sys.executable]
            if processes > 1:
                words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            words += ["-m", "benchmarks.neighbor", "--worker", str(threads)]
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


def rate(threads: int, group: distributed.Group) -> float:
    """Images per second of training, of all processes together."""
    runtime.configure(threads)
    params = config.load(records.ROOT / "params.yaml")
    training = params.training.model_copy(update={"resolution_schedule": None, "batch_size": BATCH_SIZE})
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", BATCH_SIZE * (STEPS + 1), SIZE)
        reader = ShardReader(Path(folder) / "train")
        network = build_network(params.model, reader.class_names, SIZE, seed=0)
        normalize = input_normalization("imagenet", params.model)
        trainer = Trainer(network, normalize, numerics.resolve("cpu", "auto"), training, 0, reader, reader, group)
        network.train()
        ends = []
        for images, labels in batches(reader, BATCH_SIZE, None, group.index, group.count):
            trainer.stepper.step(images, labels, seed=0, size=SIZE)
            group.total(torch.zeros(1))  # until all have ended the step
            ends.append(time.perf_counter())
    return BATCH_SIZE * STEPS / (ends[-1] - ends[0])


if __name__ == "__main__":
    main()
