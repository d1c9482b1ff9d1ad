"""(labels, probabilities) -> numbers. Pure; fractions, not percent."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support, top_k_accuracy_score

CALIBRATION_BINS = 10  # of confidence, equally wide
RESAMPLES = 1000  # of the bootstrap
AVERAGES = ("precision", "recall", "f1_score")


def classification(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Loss, accuracy, and precision, recall and F1 averaged by support ("weighted") and by class.

    `labels` are int64 [N], `probabilities` float [N, classes], rows that sum to one.
    """
    predicted = probabilities.argmax(axis=1)
    loss = log_loss(labels, probabilities, labels=range(probabilities.shape[1]))
    values = {"loss": loss, "accuracy": accuracy_score(labels, predicted)} | _averages(labels, predicted)
    return {name: float(value) for name, value in values.items()}


def evidence(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far `classification` can be relied on: 95 % intervals as NAME_low and NAME_high, top-k, calibration.

    Wilson's interval for accuracy; for the others percentiles of a bootstrap over the pictures, which draws the
    same samples every time.
    """
    predicted, rng = probabilities.argmax(axis=1), np.random.default_rng(0)
    interval = binomtest(int((predicted == labels).sum()), len(labels)).proportion_ci(method="wilson")
    values = {"accuracy_low": interval.low, "accuracy_high": interval.high}
    # Each pair of classes once, weighted by how often a sample draws it: the time does not grow with N.
    pairs, counts = np.unique([labels, predicted], axis=1, return_counts=True)
    drawn = rng.multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    samples = pd.DataFrame([_averages(*pairs[:, weights > 0], weights[weights > 0]) for weights in drawn])
    own = probabilities[np.arange(len(labels)), labels].clip(np.finfo(probabilities.dtype).eps)
    samples["loss"] = [-np.log(own[rng.integers(len(own), size=len(own))]).mean() for _ in range(RESAMPLES)]
    for suffix, quantile in (("low", 0.025), ("high", 0.975)):
        values |= samples.quantile(quantile).add_suffix(f"_{suffix}").to_dict()
    bins = calibration(labels, probabilities)
    values["calibration_error"] = (bins["count"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(labels)
    classes = probabilities.shape[1]
    for k in (2, 5):
        if k < classes:
            values[f"top_{k}_accuracy"] = top_k_accuracy_score(labels, probabilities, k=k, labels=range(classes))
    return {name: float(value) for name, value in values.items()}


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Confidence against accuracy, one row per bin of confidence that holds pictures.

    The mean gap, weighted by `count`, is the expected calibration error (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    table = pd.DataFrame({"confidence": confidence.astype(float), "accuracy": correct.astype(float)}).groupby(bins)
    return table.mean().assign(count=table.size())


def per_class(labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """One row per class, in the dataset's order: precision, recall, F1 and support."""
    scores = _scores(labels, probabilities.argmax(axis=1), labels=range(len(class_names)))
    return pd.DataFrame(dict(zip(("class", *AVERAGES, "support"), (class_names, *scores), strict=True)))


def _averages(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    values = {}
    for average, prefix in (("weighted", ""), ("macro", "macro_")):
        scores = _scores(labels, predicted, average=average, sample_weight=weights)
        values |= {prefix + name: score for name, score in zip(AVERAGES, scores[:3], strict=True)}
    return values


def _scores(actual, predicted, **options):
    """scikit-learn's scores; a class that is never predicted has precision zero."""
    return precision_recall_fscore_support(actual, predicted, zero_division=0, **options)
