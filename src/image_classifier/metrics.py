"""(labels, probabilities) -> numbers. Pure; fractions, not percent."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support


def classification(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Loss, accuracy, and precision, recall and F1 averaged by support ("weighted") and by class.

    `labels` are int64 [N], `probabilities` float [N, classes], rows that sum to one.
    """
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1_score, _ = _scores(labels, predicted, "weighted")
    macro_precision, macro_recall, macro_f1_score, _ = _scores(labels, predicted, "macro")
    values = {
        "loss": log_loss(labels, probabilities, labels=range(probabilities.shape[1])),
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision,
        "recall": recall,
        "f1_score": f1_score,
        "macro_precision": macro_precision,
        "macro_recall": macro_recall,
        "macro_f1_score": macro_f1_score,
    }
    return {name: float(value) for name, value in values.items()}


def per_class(labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """One row per class, in the dataset's order: precision, recall, F1 and support."""
    columns = _scores(labels, probabilities.argmax(axis=1), None, range(len(class_names)))
    return [
        {"class": name, "precision": p, "recall": r, "f1_score": f, "support": int(n)}
        for name, p, r, f, n in zip(class_names, *columns, strict=True)
    ]


def _scores(labels, predicted, average, classes=None):
    """scikit-learn's scores; a class that is never predicted has precision zero."""
    return precision_recall_fscore_support(labels, predicted, labels=classes, average=average, zero_division=0)
