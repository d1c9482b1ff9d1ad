"""Does fine-tuning pay? Half of the classes of CIFAR-10 teach a model that then learns the other half.

Runs of the real stages in a clone of the committed state: a model trained on classes 0 to 4; classes 5 to 9 from
scratch; and classes 5 to 9 from the first model's checkpoint, whole or with a frozen backbone, for equal epochs.

    python -m benchmarks.finetune PARQUET_FOLDER    # with train.parquet and test.parquet
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
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

FROZEN = {
    "": {"freeze_backbone": False},
    ", head alone": {"freeze_backbone": True, "unfreeze_blocks": 0},
    ", head and last two blocks": {"freeze_backbone": True, "unfreeze_blocks": 2},
}


def main() -> None:
    """Make the two halves, run the trainings, print their test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    pictures = parser.parse_args().parquet.resolve()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        for name, classes in (("first", range(5)), ("second", range(5, 10))):
            _write_half(pictures, clone / "data/raw" / name, list(classes))
        first = _run(clone, FIRST, {"pretrained": False})
        shutil.move(clone / "models/checkpoint", clone / "models/pretrained/first")
        scratch = _run(clone, SECOND, {"pretrained": False})
        found = {"first half": first, "second half, scratch": scratch}
        known = {"pretrained": True, "name": "models/pretrained/first"}
        for name, frozen in FROZEN.items():
            found[f"second half, fine-tuned{name}"] = _run(clone, SECOND, known | frozen)
    print(json.dumps({name: values["accuracy"] for name, values in found.items()}, indent=2))


def _write_half(pictures: Path, folder: Path, classes: list[int]) -> None:
    folder.mkdir()
    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(pictures / f"{split}.parquet"))
        names = [rows.features["label"].names[label] for label in classes]
        rows = rows.filter(lambda label: label in classes, input_columns="label")
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = rows.map(lambda row: {"label": classes.index(row["label"])}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")


def _run(clone: Path, settings: dict, model: dict) -> dict[str, float]:
    """Train and evaluate with these settings; return the metrics of test."""
    yaml = YAML()
    params = yaml.load(clone / "params.yaml")
    for part in (COMMON, settings, {"model": model}):
        for section, values in part.items():
            params[section].update(values)
    yaml.dump(params, clone / "params.yaml")
    for stage in ("prepare", "train", "evaluate"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=clone, check=True, stdout=sys.stderr)
    return json.loads((clone / "metrics/evaluate/metrics.json").read_text())


if __name__ == "__main__":
    main()
