"""The files of an evaluation: metrics, tables and galleries."""

from pathlib import Path

import numpy as np
import pandas as pd

from image_classifier.core import files
from image_classifier.evaluation import plots
from image_classifier.evaluation.intervals import calibration, confidence_intervals, per_class
from image_classifier.evaluation.plots import SHOWN
from image_classifier.images.shards import ShardReader
from image_classifier.model.scores import classification


def write_evaluation(
    folder: Path, labels: np.ndarray, probabilities: np.ndarray, test: ShardReader
) -> dict[str, float]:
    """Write metrics.json, the tables and galleries of what the network said of `test`; return the metrics.

    `labels` are int64 [N], `probabilities` float [N, classes].
    """
    folder.mkdir()
    values = classification(labels, probabilities) | confidence_intervals(labels, probabilities)
    counts = {"num_images": len(labels), "num_classes": len(test.class_names)}
    files.write_json(folder / "metrics.json", values | counts)
    per_class(labels, probabilities, test.class_names).to_csv(folder / "per_class.csv", index=False)
    bins = calibration(labels, probabilities)
    bins.to_csv(folder / "calibration.csv", index=False, float_format="%.6f")
    names, predicted = np.array(test.class_names), probabilities.argmax(axis=1)
    predictions = pd.DataFrame(
        {
            "image": test.hashes,
            "actual": names[labels],
            "predicted": names[predicted],
            "confidence": probabilities.max(axis=1),
        }
    )
    predictions.to_csv(folder / "predictions.csv", index=False, float_format="%.6f")
    wrong = predictions[labels != predicted].sort_values("confidence", ascending=False, kind="stable")
    sample = predictions.sample(min(SHOWN, len(labels)), random_state=0)
    plots.gallery(folder / "mistakes.png", wrong[:SHOWN], test)
    plots.gallery(folder / "random.png", sample, test)
    plots.confusion(folder / "confusion.png", predictions, test.class_names)
    plots.reliability(folder / "reliability.png", bins)
    return values
