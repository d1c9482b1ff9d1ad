"""The tables that one stage writes and others read: one reader for each."""

from pathlib import Path
from typing import Any

import pandas as pd

from image_classifier.core import files
from image_classifier.core.errors import UserError, first_line

COMPARED = 10_000  # test images that the exported formats are compared with torch on, at most


def read_predictions(path: Path) -> pd.DataFrame:
    """predictions.csv of evaluate, one row an image: image (SHA-256), actual, predicted, confidence; all of it text."""
    columns = ["image", "actual", "predicted", "confidence"]
    return _read(path, "evaluate", usecols=columns, dtype=str, keep_default_na=False)


def read_training(train: Path) -> dict:
    """metrics.json of train: the figures of the epoch that was the best on val. Raises UserError: there is none yet."""
    best = files.read_json(train / "metrics.json", remedy := "run `dvc repro`")
    if "best_epoch" not in best:
        raise UserError(f"{train}/metrics.json is of a training that has not ended: {remedy}")
    return best


def read_classes(path: Path) -> pd.DataFrame:
    """per_class.csv of evaluate, indexed by class: precision, recall, f1_score, support, recall_low, recall_high."""
    return _read(path, "evaluate", index_col="class", dtype={"class": str}, keep_default_na=False)


def read_shared(shards: Path) -> dict[str, int]:
    """How many images of train are identical to images of val or test, and of val to test; empty if none is."""
    paths = {name: shards / name / "index.json" for name in ("train", "val")}
    indexes = {name: files.read_json(path, "run `dvc repro prepare`") for name, path in paths.items()}
    counts = {name: len(index["findings"]["duplicates"]) for name, index in indexes.items()}
    return counts if any(counts.values()) else {}


def read_near_duplicates(shards: Path) -> int:
    """How many images of train and val are near-duplicates of images in a split before theirs: test, val."""
    paths = [shards / name / "index.json" for name in ("train", "val")]
    return sum(len(files.read_json(path, "run `dvc repro prepare`")["findings"]["near_duplicates"]) for path in paths)


def read_series(train: Path) -> pd.DataFrame:
    """Every series of DVCLive's folder, one column each, indexed by step (the epoch, from 0)."""
    series = [pd.read_csv(path, sep="\t", index_col="step") for path in sorted(train.glob("plots/metrics/*.tsv"))]
    return pd.concat([pd.DataFrame(), *series], axis=1)


def read_intervals(path: Path) -> pd.DataFrame:
    """intervals.csv of evaluate, indexed by score: value, low, high."""
    return _read(path, "evaluate", index_col="score")


def read_parity(path: Path) -> pd.DataFrame:
    """parity.csv of export, indexed by format (onnx, hf, int8): distance from torch, bytes, whether it ships."""
    return _read(path, "export", index_col="format")


def _read(path: Path, stage: str, **options: Any) -> pd.DataFrame:
    try:
        return pd.read_csv(path, **options)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro {stage}`") from None
    except ValueError as error:  # pandas' own are of this kind too
        raise UserError(f"{path} is damaged ({first_line(error)}): run `dvc repro -f -s {stage}`") from None
