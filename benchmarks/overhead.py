"""What the machinery costs: an up-to-date `dvc repro`, an epoch's log, memory while the shards grow.

python -m benchmarks.overhead    # in an up-to-date workspace: run `dvc repro` first
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import pairs, records

COLUMNS = ("what", "measured")
REPEATS, EPOCHS = 5, 20
BATCH_SIZE, STEPS = 128, 5
SMALL, LARGE = 2, 16  # shards of 1,024 images at 160 px, 79 MB each


def main() -> None:
    """Measure each and print the table; with an argument, one measurement in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    parser.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, metavar="SHARDS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory(arguments.memory))
        return
    if arguments.shares:
        print(*shares())
        return
    with tempfile.TemporaryDirectory() as folder:
        empty = empty_pipeline(Path(folder) / "empty")
        repro = [(seconds_of_repro(pairs.ROOT), seconds_of_repro(empty)) for _ in range(REPEATS)]
        logs = seconds_per_logged_epoch(Path(folder) / "tracked")
        pause = seconds_of_silence(Path(folder) / "tracked")
    ours, theirs = (statistics.median(times) for times in zip(*repro, strict=True))
    ratios = [mine / peer for mine, peer in repro]
    ratio = f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"
    command = [sys.executable, "-m", "benchmarks.overhead", "--memory"]
    peaks = [
        float(subprocess.run([*command, str(shards)], cwd=pairs.ROOT, check=True, capture_output=True).stdout)
        for shards in (SMALL, LARGE)
    ]
    command = [sys.executable, "-m", "benchmarks.overhead", "--shares"]
    output = subprocess.run(command, cwd=pairs.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    waiting, clock = map(float, output.split())
    logged = [seconds * 1000 for seconds in logs]
    rows = [
        ("`dvc repro` with nothing to do", f"{ours:.2f} s, an empty one-stage pipeline {theirs:.2f} s: {ratio}"),
        (
            "an epoch logged to DVCLive and MLflow (local store)",
            f"{statistics.median(logged):.0f} ms, {min(logged):.0f} to {max(logged):.0f} of {len(logs)}",
        ),
        ("a stage's pause for an MLflow server that takes calls and never answers", f"{pause:.1f} s"),
        (
            "memory of an epoch's reading, of its own (not the page cache)",
            f"{peaks[0]:.0f} MiB with {SMALL} shards, {peaks[1]:.0f} MiB with {LARGE}",
        ),
        (f"share of a training step that waits for data, 160 px, batch {BATCH_SIZE}", f"{waiting:.2%}"),
        ("share of it that the table of times takes", f"{clock:.4%}"),
    ]
    packages = ["dvc", "dvclive", "mlflow", "torch"]
    name = "overhead" if arguments.record else None
    records.publish(name, "Overhead", "python -m benchmarks.overhead", packages, COLUMNS, rows)


def empty_pipeline(folder: Path) -> Path:
    """A repository whose one stage depends on one file and writes another."""
    folder.mkdir()
    (folder / "in.txt").write_text("in")
    stage = ["dvc", "stage", "add", "-q", "-n", "copy", "-d", "in.txt", "-o", "out.txt", "cp in.txt out.txt"]
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"], stage, ["dvc", "repro", "-q"]):
        subprocess.run(words, cwd=folder, check=True)
    return folder


def seconds_of_repro(folder: Path) -> float:
    """The wall time of `dvc repro` where nothing has changed."""
    start = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=folder, check=True, capture_output=True, text=True)
    spent = time.perf_counter() - start
    if "are up to date" not in done.stdout:
        sys.exit(f"{folder} was not up to date, and is now: run this again")
    return spent


def seconds_per_logged_epoch(folder: Path) -> list[float]:
    """How long each epoch's log takes, in a fresh local store."""
    from filelock import FileLock

    from image_classifier.core import config
    from image_classifier.training.timing import Stopwatch
    from image_classifier.training.tracker import Tracker

    folder.mkdir()
    params = config.load(pairs.ROOT / "params.yaml")
    names = ["train_loss", "train_accuracy", "learning_rate", "val_loss", "val_accuracy", "val_precision", "val_recall"]
    values, spent = dict.fromkeys([*names, "val_f1_score"], 0.5), []
    os.chdir(folder)
    (folder / ".resume/training").mkdir(parents=True)
    lock = FileLock(".resume/training/lock")
    log = Tracker("metrics/train", params, 10, {"data.sha256": "0" * 64}, lock, Stopwatch())
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        log.log_epoch(epoch, values)
        spent.append(time.perf_counter() - start)
    if log.failures:
        sys.exit("MLflow was given up: an epoch's log cannot be measured")
    os.chdir(pairs.ROOT)
    return spent


def seconds_of_silence(folder: Path) -> float:
    """How long a server that never answers holds a stage up."""
    from image_classifier.core import config
    from image_classifier.tracking.model_run import add_to_model_run

    settings = config.load(pairs.ROOT / "params.yaml").mlflow
    os.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.perf_counter()
        add_to_model_run(settings, "0" * 64, {}, [])
        spent = time.perf_counter() - start
    del os.environ["MLFLOW_TRACKING_URI"]
    os.chdir(pairs.ROOT)
    return spent


def memory(shards: int) -> float:
    """Peak MiB of anonymous memory while an epoch of shuffled, normalized batches of 128 is read."""
    import torch

    from image_classifier.images.resize import Resize
    from image_classifier.images.shards import SHARD_SIZE, ShardReader, ShardWriter
    from image_classifier.model.batches import batches, shuffled
    from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (SHARD_SIZE, 160, 160, 3), dtype=torch.uint8, generator=generator)
    normalize, peak = Normalize(IMAGENET_MEAN, IMAGENET_STD), 0.0
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder) / "train", Resize(160, "stretch"))
        for number in range(shards * SHARD_SIZE):
            writer.add(pixels[number % SHARD_SIZE], number % 10, bytes(32), number)
        writer.close([str(digit) for digit in range(10)])
        del writer, pixels
        reader = ShardReader(Path(folder) / "train")
        for images, _ in batches(reader, 128, shuffled(len(reader), 0, 0)):
            normalize(images)
            peak = max(peak, pairs.own_memory())
    return peak


def shares() -> tuple[float, float]:
    """Of a training step: how much it waits for its batch, and how much the stopwatch itself takes."""
    import torch

    from image_classifier.core import config, runtime
    from image_classifier.images.resize import Resize
    from image_classifier.images.shards import ShardReader, ShardWriter
    from image_classifier.model import numerics
    from image_classifier.model.normalize import Normalize
    from image_classifier.training.build import build_network
    from image_classifier.training.timing import READING, Stopwatch
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    params = config.load(pairs.ROOT / "params.yaml")
    changes = {"batch_size": BATCH_SIZE, "resolution_schedule": None, "fast_mode": True, "num_epochs": 1}
    training = params.training.model_copy(update=changes)
    images = torch.randint(0, 256, (BATCH_SIZE, 160, 160, 3), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder) / "train", Resize(160, "stretch"))
        for number in range(STEPS * BATCH_SIZE):
            writer.add(images[number % BATCH_SIZE], number % 10, bytes(32), number)
        writer.close([str(digit) for digit in range(10)])
        reader = ShardReader(Path(folder) / "train")
        network = build_network(params.model, reader.class_names, 160, 0)
        chosen = numerics.resolve("cpu", "auto")
        trainer = Trainer(network, Normalize(), chosen, training, 0, reader, reader)
        trainer._train_epoch(0)
    spent, blank = trainer.clock.seconds, Stopwatch()
    start = time.perf_counter()
    for _ in range(10_000):
        with blank("nothing"):
            pass
    block = (time.perf_counter() - start) / 10_000  # seconds; a step has four
    return spent[READING] / sum(spent.values()), 4 * STEPS * block / sum(spent.values())


if __name__ == "__main__":
    main()
