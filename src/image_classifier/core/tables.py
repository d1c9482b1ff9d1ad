"""The tables that one stage writes and others read: one reader for each."""

from pathlib import Path

import pandas as pd


def read_predictions(path: Path) -> pd.DataFrame:
    """predictions.csv of evaluate, one row an image: image (SHA-256), actual, predicted, confidence; all of it text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_classes(path: Path) -> pd.DataFrame:
    """per_class.csv of evaluate, indexed by class: precision, recall, f1_score, support."""
    return pd.read_csv(path, index_col="class", dtype={"class": str}, keep_default_na=False)


def read_series(train: Path) -> pd.DataFrame:
    """Every series of DVCLive's folder, one column each, indexed by step (the epoch, from 0)."""
    series = [pd.read_csv(path, sep="\t", index_col="step") for path in sorted(train.glob("plots/metrics/*.tsv"))]
    return pd.concat([pd.DataFrame(), *series], axis=1)


def intervals(metrics: dict[str, float]) -> pd.DataFrame:
    """The figures of evaluate that have a 95 % interval, one row each: value, low, high."""
    names = [name.removesuffix("_low") for name in metrics if name.endswith("_low")]
    rows = {name: (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]) for name in names}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])
