"""The files that people read: tables of an evaluation."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from image_classifier import files, metrics


def write_evaluation(
    folder: Path, labels: np.ndarray, probabilities: np.ndarray, hashes: list[str], class_names: list[str]
) -> dict[str, float]:
    """Write metrics.json, per_class.csv and predictions.csv; return the metrics.

    Args:
        labels: int64 [N].
        probabilities: float [N, classes].
        hashes: SHA-256 of each picture's decoded pixels, hex.
    """
    folder.mkdir()
    values = metrics.classification(labels, probabilities)
    files.write_json(folder / "metrics.json", values | {"num_images": len(labels), "num_classes": len(class_names)})
    _write_csv(folder / "per_class.csv", metrics.per_class(labels, probabilities, class_names))
    predicted = probabilities.argmax(axis=1)
    _write_csv(
        folder / "predictions.csv",
        (
            {
                "image": digest,
                "actual": class_names[label],
                "predicted": class_names[guess],
                "confidence": f"{row[guess]:.6f}",
            }
            for digest, label, guess, row in zip(hashes, labels, predicted, probabilities, strict=True)
        ),
    )
    return values


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
