"""What single settings give: the same short training on CIFAR-10 images, one setting changed at a time.

    python -m benchmarks.settings PARQUET_FOLDER    # with train.parquet and test.parquet

Each run is the train stage's loop from scratch on 10,000 images, 4 epochs at 32, 32, 32 and 64 px, and 5,000 held-out
images are classified at 64 px. One seed: differences below five points may be chance.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import pairs
from benchmarks.pictures import write_shards

SIZE = 64
PARTS = {"train": (0, 10_000), "val": (10_000, 1_000), "test": (0, 5_000)}  # first row and number, of shuffled rows
BASE = {
    "num_epochs": 4,
    "batch_size": 64,
    "resolution_schedule": [32, 32, 32, 64],
    "fast_mode": False,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "scheduler": "one_cycle",
    "warmup_fraction": 0.2,
    "batch_norm_images": 2048,
}
CHANGES = {
    "none: flips, sgd, one_cycle": {},
    "fast_mode: true": {"fast_mode": True},
    "augmentation.crop_padding: 0.125": {"augmentation": {"crop_padding": 0.125}},
    "augmentation.rotation: 15": {"augmentation": {"rotation": 15}},
    "augmentation.color_jitter: 0.3": {"augmentation": {"color_jitter": 0.3}},
    "augmentation.trivial_augment: true": {"augmentation": {"trivial_augment": True}},
    "label_smoothing: 0.1": {"label_smoothing": 0.1},
    "decay_norms_and_biases: false": {"decay_norms_and_biases": False},
    "gradient_clip: 1.0": {"gradient_clip": 1.0},
    "scheduler: cosine": {"scheduler": "cosine"},
    "scheduler: none": {"scheduler": "none"},
    "optimizer: adamw, learning_rate: 0.002": {"optimizer": "adamw", "learning_rate": 0.002, "weight_decay": 0.01},
    "optimizer: adam, learning_rate: 0.002": {"optimizer": "adam", "learning_rate": 0.002, "weight_decay": 0.0},
}


def main() -> None:
    """Without --one: run all in turn, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train(arguments.parquet, CHANGES[arguments.one])))
        return
    lines = ["### One setting at a time", ""]
    lines += [f"`python -m benchmarks.settings PARQUET_FOLDER`, {pairs.environment(['torch', 'transformers'])}", ""]
    lines += ["| changed | val accuracy | test accuracy | images/s |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        write_shards(arguments.parquet, Path(folder), PARTS, SIZE)
        for name in CHANGES:
            print(f"settings: {name}", file=sys.stderr)
            words = [sys.executable, "-m", "benchmarks.settings", folder, "--one", name]
            output = subprocess.run(words, cwd=pairs.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            lines.append(f"| `{name}` | {found['val']:.3f} | {found['test']:.3f} | {found['rate']:.0f} |")
            print(lines[-1], file=sys.stderr)
    lines += ["", "10,000 training, 1,000 val and 5,000 test pictures; one seed."]
    print("\n".join(lines))
    if arguments.record:
        pairs.record("settings", "\n".join(lines))


def train(shards: Path, changes: dict) -> dict[str, float]:
    """Train with the base settings and these changes; the accuracies of the best epoch on val, and the rate."""
    from image_classifier.core import runtime
    from image_classifier.core.config import Config
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches
    from image_classifier.model.inference import predict
    from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
    from image_classifier.model.scores import classification
    from image_classifier.training.build import build_network
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    values = YAML(typ="safe").load(pairs.ROOT / "params.yaml")
    values["data"] |= {"image_size": SIZE}
    augmentation = values["training"]["augmentation"] | changes.get("augmentation", {})
    values["training"] |= BASE | changes | {"augmentation": augmentation}
    params = Config.model_validate(values)
    train, val, test = (ShardReader(shards / name) for name in ("train", "val", "test"))
    network = build_network(params.model, train.class_names, SIZE, params.seed)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    chosen = numerics.resolve("cpu", "auto")
    trainer = Trainer(network, normalize, chosen, params.training, params.seed, train, val)
    for _ in trainer.epochs():
        pass
    labels, probabilities = predict(network, normalize, batches(test, 128), numerics.resolve("cpu", "fp32"))
    accuracy = classification(labels, probabilities)["accuracy"]
    return {"val": trainer.best["metrics"]["val_accuracy"], "test": accuracy, "rate": trainer.clock.rate()}


if __name__ == "__main__":
    main()
