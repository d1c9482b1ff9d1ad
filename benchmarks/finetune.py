"""Does fine-tuning pay? Half of the classes of CIFAR-10 teach a model that then learns the other half.

Runs of the real stages in a clone of the committed state: a model trained on classes 0 to 4; classes 5 to 9 from
scratch; and classes 5 to 9 from the first model's checkpoint, whole or with a frozen backbone, for equal epochs.

    python -m benchmarks.finetune PARQUET_FOLDER    # with train.parquet and test.parquet
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pandas as pd
from ruamel.yaml import YAML

from benchmarks import records
from benchmarks.records import ROOT
from image_classifier.core import tables

COLUMNS = ("the other half", "test accuracy, of 4,967", "95% interval")
COMMON = {
    "data": {"image_size": 64, "test_fraction": None, "on_duplicate": "drop", "val_fraction": 0.05},
    "model": {"dropout": None},
    "training": {
        "resolution_schedule": None,
        "batch_size": 32,
        "fast_mode": False,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "weight_decay": 0.0005,
        "warmup_fraction": 0.2,
        "scheduler": "one_cycle",
    },
}
FIRST = {"data": {"source": "data/raw/first", "subset_size": 10_000}, "training": {"num_epochs": 5}}
SECOND = {"data": {"source": "data/raw/second", "subset_size": 2_000}, "training": {"num_epochs": 5}}

FROZEN: dict[str, dict[str, object]] = {
    ", all of it": {"freeze_backbone": False},
    ", head alone": {"freeze_backbone": True, "unfreeze_blocks": 0},
    ", head and last two blocks": {"freeze_backbone": True, "unfreeze_blocks": 2},
}


def main() -> None:
    """Make the two halves, run the trainings, print their test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    images = arguments.parquet.resolve()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        for name, classes in (("first", range(5)), ("second", range(5, 10))):
            _write_half(images, clone / "data/raw" / name, list(classes))
        _run(clone, FIRST, {"pretrained": False})
        shutil.move(clone / "models/checkpoint", clone / "models/pretrained/first")
        found = {"from scratch": _run(clone, SECOND, {"pretrained": False})}
        known: dict[str, object] = {"pretrained": True, "name": "models/pretrained/first"}
        for name, frozen in FROZEN.items():
            found[f"fine-tuned{name}"] = _run(clone, SECOND, known | frozen)
    rows = [
        [name, f"{score['value']:.4f}", f"{score['low']:.4f} to {score['high']:.4f}"] for name, score in found.items()
    ]
    title = "Half of the classes teach a model that then learns the other half"
    command = "python -m benchmarks.finetune PARQUET_FOLDER"
    kept, note = "finetune" if arguments.record else None, "MobileViT-Small, 5 epochs at 64 px each, one seed."
    records.publish(kept, title, command, ["torch", "transformers"], COLUMNS, rows, note)


def _write_half(images: Path, folder: Path, classes: list[int]) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(images / f"{split}.parquet"))
        names = [rows.features["label"].names[label] for label in classes]
        rows = rows.filter(lambda label: label in classes, input_columns="label")
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = rows.map(lambda row: {"label": classes.index(row["label"])}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")


def _run(clone: Path, settings: dict, model: dict) -> pd.Series:
    """Train and evaluate with these settings; return the accuracy on test: value, low, high."""
    yaml = YAML()
    params = yaml.load(clone / "params.yaml")
    for part in (COMMON, settings, {"model": model}):
        for section, values in part.items():
            params[section].update(values)
    yaml.dump(params, clone / "params.yaml")
    for stage in ("prepare", "train", "evaluate"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=clone, check=True, stdout=sys.stderr)
    return tables.read_intervals(clone / "metrics/evaluate/intervals.csv").loc["accuracy"]


if __name__ == "__main__":
    main()
