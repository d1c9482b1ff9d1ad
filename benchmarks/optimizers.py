"""What an optimizer teaches MobileViT-Small from scratch in as many epochs: three optimizers, three seeds.

    python -m benchmarks.optimizers PARQUET_FOLDER    # with train.parquet and test.parquet

Each run is the train stage's loop on 8,000 CIFAR-10 images, two epochs at 32 px and four at 64 px, at a rate and batch
that suit the optimizer; the best epoch on 1,000 val images classifies 5,000 images of the test file. Nothing else may
run beside it.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import pairs, records
from benchmarks.images import write_shards

SIZE, SEEDS = 64, 3
PARTS = {"train": (0, 8_000), "val": (8_000, 1_000), "test": (0, 5_000)}  # first row and number, of shuffled rows
COLUMNS = ("optimizer", "learning rate", "batch", "test accuracy, mean", "of each seed", "minutes of training")
BASE = {
    "num_epochs": 6,
    "resolution_schedule": [32, 32, 64, 64, 64, 64],
    "fast_mode": False,
    "decay_norms_and_biases": False,
    "warmup_fraction": 0.2,
    "batch_norm_images": 1024,
}
OPTIMIZERS: dict[str, dict] = {
    "sgd": {"learning_rate": 0.1, "batch_size": 64, "weight_decay": 5e-4},
    "adamw": {"learning_rate": 1e-3, "batch_size": 64, "weight_decay": 0.05},
    "muon": {"learning_rate": 0.02, "batch_size": 128, "weight_decay": 0.05},
}


def main() -> None:
    """Without --one: run all in turn, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("OPTIMIZER", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train(arguments.parquet, arguments.one[0], int(arguments.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_shards(arguments.parquet, Path(folder), PARTS, SIZE)
        measured = pairs.over_seeds("optimizers", folder, {name: name for name in OPTIMIZERS}, SEEDS)
    rows = []
    for name, runs in measured.items():
        accuracies = [run["accuracy"] for run in runs]
        rows.append(
            [
                f"`{name}`",
                f"{OPTIMIZERS[name]['learning_rate']:g}",
                str(OPTIMIZERS[name]["batch_size"]),
                f"{statistics.mean(accuracies):.3f}",
                ", ".join(f"{accuracy:.3f}" for accuracy in accuracies),
                f"{statistics.mean(run['seconds'] for run in runs) / 60:.1f}",
            ]
        )
    sizes = ", ".join(f"{number:,} {part}" for part, (_, number) in PARTS.items())
    note = f"{sizes} images; {SEEDS} seeds, 6 epochs."
    title, command = (
        "Optimizers from scratch, in as many epochs, each at its own batch",
        "python -m benchmarks.optimizers PARQUET_FOLDER",
    )
    kept = "optimizers" if arguments.record else None
    records.publish(kept, title, command, ["torch", "transformers"], COLUMNS, rows, note)


def train(shards: Path, optimizer: str, seed: int) -> dict[str, float]:
    """Train with the base settings and this optimizer; the accuracy of its best epoch, and the seconds it took."""
    from image_classifier.core import runtime
    from image_classifier.core.config import Config
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches
    from image_classifier.model.inference import predict
    from image_classifier.training.build import build_network, input_normalization
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    values = YAML(typ="safe").load(records.ROOT / "params.yaml")
    augmentation = values["training"]["augmentation"] | {"crop_padding": 0.125}
    values["training"] |= BASE | OPTIMIZERS[optimizer] | {"optimizer": optimizer, "augmentation": augmentation}
    params = Config.model_validate(values)
    train, val, test = (ShardReader(shards / part) for part in ("train", "val", "test"))
    network = build_network(params.model, train.class_names, SIZE, seed)
    normalize = input_normalization("imagenet", params.model)
    trainer = Trainer(network, normalize, numerics.resolve("cpu", "auto"), params.training, seed, train, val)
    start = time.perf_counter()
    for _ in trainer.epochs():
        pass
    seconds = time.perf_counter() - start
    labels, probabilities = predict(network, normalize, batches(test, 128), numerics.resolve("cpu", "fp32"))
    return {"accuracy": float((probabilities.argmax(axis=1) == labels).mean()), "seconds": seconds}


if __name__ == "__main__":
    main()
