"""The files of an evaluation: metrics, tables and galleries."""

from pathlib import Path

import numpy as np
import pandas as pd

from image_classifier.core import files
from image_classifier.evaluation import plots
from image_classifier.evaluation.intervals import calibration, confidence_intervals, per_class
from image_classifier.evaluation.plots import SHOWN
from image_classifier.images.shards import ShardReader

HEADLINE = ("accuracy", "precision", "recall", "f1_score", "loss", "calibration_error")  # of metrics.json


def write_evaluation(folder: Path, labels: np.ndarray, probabilities: np.ndarray, test: ShardReader) -> pd.DataFrame:
    """Write what the network said of `test` into a new folder; return every score with its 95% interval.

    `labels` are int64 [N], `probabilities` float [N, classes]. metrics.json holds the headline scores alone,
    intervals.csv all of them; per_class.csv, calibration.csv and predictions.csv are tables, the others images.
    """
    folder.mkdir()
    scores = confidence_intervals(labels, probabilities)
    files.write_json(folder / "metrics.json", scores.loc[[*HEADLINE], "value"].to_dict())
    scores.to_csv(folder / "intervals.csv", index_label="score")
    per_class(labels, probabilities, test.class_names).to_csv(folder / "per_class.csv", index=False)
    bins = calibration(labels, probabilities)
    bins.to_csv(folder / "calibration.csv", index=False, float_format="%.6f")
    names, predicted = np.array(test.class_names), probabilities.argmax(axis=1)
    classes = {"actual": names[labels], "predicted": names[predicted]}
    predictions = pd.DataFrame({"image": test.hashes, **classes, "confidence": probabilities.max(axis=1)})
    predictions.to_csv(folder / "predictions.csv", index=False, float_format="%.6f")
    wrong = predictions[labels != predicted].sort_values("confidence", ascending=False, kind="stable")
    sample = predictions.sample(min(SHOWN, len(labels)), random_state=0)
    plots.gallery(folder / "mistakes.png", wrong[:SHOWN], test)
    plots.gallery(folder / "random.png", sample, test)
    plots.confusion(folder / "confusion.png", predictions, test.class_names)
    plots.reliability(folder / "reliability.png", bins)
    return scores
