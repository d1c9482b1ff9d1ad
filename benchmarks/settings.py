"""What single settings give when pretrained weights are fine-tuned on 2,000 images: one changed at a time, three seeds.

    python -m benchmarks.settings PARQUET_FOLDER               # with train.parquet and test.parquet
    python -m benchmarks.settings PARQUET_FOLDER --balance     # class weights where half of the classes are rare

Each run is the train stage's loop from ImageNet weights (`image-classifier weights efficientnet-lite0`), 5 epochs at
96 px; the best epoch on 1,000 val images classifies 3,000 held-out ones.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from scipy import stats

from benchmarks import pairs, records
from benchmarks.images import write_shards

COLUMNS = ("changed", "test accuracy, mean", "of each seed", "against no change, points")
BALANCE_COLUMNS = ("training.class_weights", "accuracy", "recall, common classes", "recall, rare classes")
SIZE, SEEDS, RARE = 96, 3, 40
PARTS = {"train": (0, 2_000), "val": (2_000, 1_000), "test": (0, 3_000)}  # first row and number, of shuffled rows
BASE = {
    "num_epochs": 5,
    "batch_size": 32,
    "resolution_schedule": None,
    "fast_mode": False,
    "precision": "fp32",
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "adam_beta2": 0.999,
    "weight_decay": 0.05,
    "scheduler": "one_cycle",
    "warmup_fraction": 0.2,
    "label_smoothing": 0.0,
    "batch_norm_images": None,
}
CHANGES: dict[str, dict] = {
    "none: flips": {},
    "training.fast_mode: true": {"fast_mode": True},
    "augmentation.random_resized_crop: 0.35": {"augmentation": {"random_resized_crop": 0.35}},
    "augmentation.crop_padding: 0.125": {"augmentation": {"crop_padding": 0.125}},
    "augmentation.trivial_augment: true": {"augmentation": {"trivial_augment": True}},
    "augmentation.mixup: 0.2": {"augmentation": {"mixup": 0.2}},
    "augmentation.cutmix: 1.0": {"augmentation": {"cutmix": 1.0}},
    "training.label_smoothing: 0.1": {"label_smoothing": 0.1},
    "training.ema_decay: 0.98": {"ema_decay": 0.98},
    "training.head_lr_factor: 10": {"head_lr_factor": 10.0},
    "training.layer_lr_decay: 0.8": {"layer_lr_decay": 0.8},
    "training.learning_rate: 3e-4": {"learning_rate": 3e-4},
    "model.freeze_backbone: true": {"model": {"freeze_backbone": True}},
}
BALANCE = {name: {"class_weights": weighted} for name, weighted in (("false", False), ("true", True))}


def main() -> None:
    """Without --one: run all in turn, each in its own process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--balance", action="store_true", help="the rare classes' table instead")
    parser.add_argument("--one", nargs=2, metavar=("CHANGE", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(train(arguments.parquet, json.loads(arguments.one[0]), int(arguments.one[1]))))
        return
    changes = BALANCE if arguments.balance else CHANGES
    with tempfile.TemporaryDirectory() as folder:
        write_shards(arguments.parquet, Path(folder), PARTS, SIZE, keep=_few if arguments.balance else None)
        ways = {name: json.dumps(change) for name, change in changes.items()}
        measured = pairs.over_seeds("settings", folder, ways, SEEDS)
    command, packages = "python -m benchmarks.settings PARQUET_FOLDER", ["torch", "timm", "transformers"]
    if arguments.balance:
        title = "Rare classes: five of ten with a fifth of the images"
        kept = "balance" if arguments.record else None
        rows = [
            [f"`{kind}`", *(_of_seeds([run[score] for run in runs]) for score in ("accuracy", "common", "rare"))]
            for kind, runs in measured.items()
        ]
        records.publish(kept, title, f"{command} --balance", packages, BALANCE_COLUMNS, rows, "Mean, and each seed.")
        return
    note = (
        f"2,000 training, 1,000 val and 3,000 test images; {SEEDS} seeds. Differences are those of equal seeds, with a "
        "95% t-interval whose standard deviation is pooled over all rows: what another seed would change."
    )
    kept, title = "settings" if arguments.record else None, "One setting at a time, fine-tuning EfficientNet-Lite0"
    records.publish(kept, title, command, packages, COLUMNS, _rows(measured), note)


def _rows(measured: dict[str, list[dict]]) -> list[list[str]]:
    accuracies = {name: np.array([run["accuracy"] for run in runs]) for name, runs in measured.items()}
    base, *others = accuracies
    gains = {name: 100 * (accuracies[name] - accuracies[base]) for name in others}
    spread = np.sqrt(np.mean([gain.var(ddof=1) for gain in gains.values()]))
    half = stats.t.ppf(0.975, len(others) * (SEEDS - 1)) * spread / np.sqrt(SEEDS)
    rows = []
    for name in measured:
        each = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies[name])
        gain = gains[name].mean() if name in gains else 0.0
        against = f"{gain:+.1f} ({gain - half:+.1f} to {gain + half:+.1f})" if name in gains else ""
        rows.append([f"`{name}`", f"{accuracies[name].mean():.3f}", each, against])
    return rows


def _of_seeds(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def _few(label: int, count: int) -> bool:
    """Whether a training image is kept of which `count` of its class are there already: few of the last five."""
    return label < 5 or count < RARE


def train(shards: Path, changes: dict, seed: int) -> dict[str, float]:
    """Train with the base settings and these changes; the accuracy of the best epoch on val, and recalls."""
    from image_classifier.commands import weights
    from image_classifier.core import runtime
    from image_classifier.core.config import Config
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches
    from image_classifier.model.inference import predict
    from image_classifier.model.scores import class_scores
    from image_classifier.training import features
    from image_classifier.training.build import build_network, input_normalization
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    values = YAML(typ="safe").load(records.ROOT / "params.yaml")
    augmentation = values["training"]["augmentation"] | changes.get("augmentation", {})
    changed = {name: value for name, value in changes.items() if name != "model"}
    values["training"] |= BASE | changed | {"augmentation": augmentation}
    if "model" in changes:  # with a frozen backbone augmentation would only hide what is computed once
        values["training"]["fast_mode"] = True
    weights.FOLDER = shards / "weights"
    name = str(weights.FOLDER / "efficientnet-lite0")
    if not Path(name).is_dir():
        weights.write("efficientnet-lite0")
    values["model"] |= {"name": name, "pretrained": True} | changes.get("model", {})
    params = Config.model_validate(values)
    train, val, test = (ShardReader(shards / part) for part in ("train", "val", "test"))
    network = build_network(params.model, train.class_names, SIZE, seed)
    normalize = input_normalization("checkpoint", params.model)
    chosen = numerics.resolve("cpu", params.training.precision)
    learner, prepare, train, val = features.set_up(network, normalize, chosen, params.training, train, val)
    trainer = Trainer(learner, prepare, chosen, params.training, seed, train, val)
    for _ in trainer.epochs():
        pass
    labels, probabilities = predict(network, normalize, batches(test, 128), numerics.resolve("cpu", "fp32"))
    recall = class_scores(labels, probabilities.argmax(axis=1))[1]
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    return {"accuracy": accuracy, "common": float(recall[:5].mean()), "rare": float(recall[5:].mean())}


if __name__ == "__main__":
    main()
