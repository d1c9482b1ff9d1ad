"""(labels, probabilities) -> scores. Pure; fractions, not percent."""

import numpy as np
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

AVERAGES = ("precision", "recall", "f1_score")


def classification(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Loss, accuracy, and precision, recall and F1 averaged by support ("weighted") and by class.

    `labels` are int64 [N], `probabilities` float [N, classes], rows that sum to one.
    """
    predicted = probabilities.argmax(axis=1)
    loss = log_loss(labels, probabilities, labels=range(probabilities.shape[1]))
    values = {"loss": loss, "accuracy": accuracy_score(labels, predicted)} | averages(labels, predicted)
    return {name: float(value) for name, value in values.items()}


def averages(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of predicted classes int64 [N], averaged by support and, as macro_NAME, by class."""
    values: dict[str, float] = {}
    for average, prefix in (("weighted", ""), ("macro", "macro_")):
        scores = class_scores(labels, predicted, average=average)
        values |= {prefix + name: score for name, score in zip(AVERAGES, scores[:3], strict=True)}
    return values


def class_scores(actual, predicted, **options):
    """scikit-learn's scores; a class that is never predicted has precision zero."""
    return precision_recall_fscore_support(actual, predicted, zero_division=0, **options)
