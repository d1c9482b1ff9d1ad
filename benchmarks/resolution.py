"""What a resolution schedule buys: two schedules, the same minutes, three seeds, on CIFAR-10 images.

    python -m benchmarks.resolution PARQUET_FOLDER    # with train.parquet and test.parquet

Each run trains a MobileViT-Small from scratch on 10,000 images for five minutes of wall time by
the loop of the train stage; the learning rate and the size follow the share of the time that has
passed. In the end batch norm's statistics are recomputed and 5,000 images of the test file are
classified at 160 px. Nothing else may run beside it.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import pairs, records
from benchmarks.images import write_shards

SCHEDULES = {"grows": [64, 64, 64, 96, 128, 160], "160 throughout": [160]}
SEEDS, SECONDS, SIZE = 3, 300, 160
TRAIN, TEST = 10_000, 5_000
COLUMNS = ("sizes, px", "test accuracy, mean", "of each seed", "images seen")
BATCH_SIZE, PEAK_RATE, WARMUP = 32, 0.1, 0.2  # of SGD with Nesterov momentum


def main() -> None:
    """Without a schedule: run all in turn, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("SCHEDULE", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(train(arguments.parquet, SCHEDULES[arguments.one[0]], int(arguments.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(arguments.parquet, Path(folder), {"train": (0, TRAIN), "test": (0, TEST)}, SIZE)
        results = pairs.over_seeds("resolution", folder, {name: name for name in SCHEDULES}, SEEDS)
    rows = []
    for name, runs in results.items():
        accuracies = [run["accuracy"] for run in runs]
        seen = statistics.mean(run["seen"] for run in runs)
        each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        sizes = ", ".join(map(str, SCHEDULES[name]))
        rows.append([f"{name}: {sizes}", f"{statistics.mean(accuracies):.4f}", each, f"{seen:,.0f}"])
    note = f"{SECONDS} s of training each; {TRAIN:,} training and {TEST:,} test images."
    title = "A resolution schedule against constant 160 px, in the same time"
    command = "python -m benchmarks.resolution PARQUET_FOLDER"
    kept = "resolution" if arguments.record else None
    records.publish(kept, title, command, ["torch", "transformers"], COLUMNS, rows, note)


def train(shards: Path, schedule: list[int], seed: int) -> dict[str, float]:
    """Train for `SECONDS`, then classify the test images."""
    import torch

    from image_classifier.core import config, runtime
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches, num_batches, shuffled
    from image_classifier.model.inference import predict
    from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
    from image_classifier.model.scores import classification
    from image_classifier.training.build import build_network
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    params = config.load(pairs.ROOT / "params.yaml")
    settings = {"optimizer": "sgd", "learning_rate": PEAK_RATE, "weight_decay": 5e-4, "batch_size": BATCH_SIZE}
    settings |= {"fast_mode": False, "num_epochs": 1, "resolution_schedule": None, "batch_norm_images": 1024}
    augmentation = params.training.augmentation.model_copy(update={"horizontal_flip": True})
    training = params.training.model_copy(update=settings | {"augmentation": augmentation})
    reader, test = ShardReader(shards / "train"), ShardReader(shards / "test")
    network = build_network(params.model, reader.class_names, SIZE, seed)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    trainer = Trainer(network, normalize, numerics.resolve("cpu", "auto"), training, seed, reader, test)
    network.train()
    step, start = 0, time.perf_counter()

    def passed() -> float:
        return (time.perf_counter() - start) / SECONDS

    def rate(_: int) -> float:
        """Up to the peak in a line, then down."""
        return max(min(passed() / WARMUP, (1 - passed()) / (1 - WARMUP)), 1e-3)

    optimizer = trainer.stepper.optimizer
    for group in optimizer.param_groups:
        group["lr"] = PEAK_RATE
    trainer.stepper.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    per_epoch = num_batches(len(reader), BATCH_SIZE)
    while (share := passed()) < 1:
        epoch, number = divmod(step, per_epoch)
        if number == 0:
            parts = batches(reader, BATCH_SIZE, shuffled(len(reader), seed, epoch))
        images, labels = next(parts)
        trainer.stepper.step(
            images, labels, runtime.derive_seed(seed, epoch, number), schedule[int(share * len(schedule))]
        )
        step += 1
    trainer.recompute_batch_norm(epoch)
    found = predict(network, normalize, batches(test, 128), numerics.resolve("cpu", "fp32"))
    accuracy = classification(*found)["accuracy"]
    return {"accuracy": accuracy, "seen": step * BATCH_SIZE}


if __name__ == "__main__":
    main()
