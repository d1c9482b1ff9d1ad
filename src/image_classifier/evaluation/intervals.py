"""How far scores can be relied on: 95% intervals, top-k accuracy, calibration."""

import math

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.stats import norm
from sklearn.metrics import top_k_accuracy_score

from image_classifier.model.scores import AVERAGES, averages, class_scores

CALIBRATION_BINS = 10  # of confidence, equally wide
RESAMPLES = 1000  # of the bootstrap


def confidence_intervals(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Every score with its 95% interval, one row each: value, low, high; indexed by the score's name.

    `labels` are int64 [N], `probabilities` float [N, classes]. Accuracies have Wilson's interval. So do averages over
    the classes, with the number of images for which an accuracy would have the variance that the average has in a
    bootstrap within each class (effective sample size, Korn and Graubard 1998): bootstrap percentiles are too narrow
    near 1. With many classes of a few images, that of precision still is. Loss and calibration error have percentiles.
    """
    predicted, classes = probabilities.argmax(axis=1), range(probabilities.shape[1])
    shares = {"accuracy": (predicted == labels).mean()}
    for k in (2, 5):
        if k < len(classes):
            shares[f"top_{k}_accuracy"] = top_k_accuracy_score(labels, probabilities, k=k, labels=classes)
    rows = {name: (share, *wilson(share, len(labels))) for name, share in shares.items()}
    rows |= _averages(labels, predicted) | {"recall": rows["accuracy"]}  # weighted by class, recall is the same share
    return pd.DataFrame(rows | _losses(labels, probabilities), ["value", "low", "high"]).T


def _averages(labels: np.ndarray, predicted: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """The rows of `confidence_intervals` that are averages over the classes: precision, recall and F1."""
    # Each pair of classes once, weighted by how often a sample draws it: the time does not grow with N.
    pairs, counts = np.unique([labels, predicted], axis=1, return_counts=True)
    by_class, rng = [counts[pairs[0] == label] for label in np.unique(labels)], np.random.default_rng(0)
    weights = np.hstack([rng.multinomial(own.sum(), own / own.sum(), size=RESAMPLES) for own in by_class])
    variances = sample_averages(pairs[0], pairs[1], weights).var()
    # A class without mistakes has no variance in a bootstrap, so the class sizes limit the effective number.
    most_macro = len(by_class) ** 2 / sum(1 / own.sum() for own in by_class)
    rows = {}
    for name, value in averages(labels, predicted).items():
        most = most_macro if name.startswith("macro_") else len(labels)
        variance = max(variances[name], np.finfo(float).tiny)  # zero if every class is all right or all wrong
        perfect = min(value, 1 - value) < 1e-9  # or the opposite, and so is every sample
        rows[name] = (value, *wilson(value, most if perfect else min(most, value * (1 - value) / variance)))
    return rows


def _losses(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """The rows of `confidence_intervals` that come from probabilities: loss and calibration error.

    By chance the calibration error is above 0 even for a calibrated model, and a bootstrap adds as much again. If a
    calibrated model could have this error (consistency resampling, Broecker and Smith 2007), the interval starts at 0;
    otherwise both are subtracted from its lower end.
    """
    predicted, rng = probabilities.argmax(axis=1), np.random.default_rng(0)
    losses = -np.log(probabilities[np.arange(len(labels)), labels].clip(np.finfo(probabilities.dtype).eps))
    confidence = probabilities.max(axis=1)
    bins, gaps = _bins(confidence), (predicted == labels) - confidence.astype(float)
    samples = (rng.integers(len(labels), size=len(labels)) for _ in range(RESAMPLES))
    drawn = [(losses[rows].mean(), _calibration_error(bins[rows], gaps[rows])) for rows in samples]
    values = np.array([losses.mean(), _calibration_error(bins, gaps)])
    bias = np.mean(drawn, axis=0) - values
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0) - bias
    calibrated = (rng.random(len(labels)) < confidence for _ in range(RESAMPLES))
    chance = np.quantile([_calibration_error(bins, right - confidence.astype(float)) for right in calibrated], 0.975)
    low[1] = low[1] - bias[1] if values[1] > chance else 0
    rows = np.stack([values, low.clip(min=0), high.clip(max=(np.inf, 1))], axis=1)
    return dict(zip(("loss", "calibration_error"), map(tuple, rows.tolist()), strict=True))


def sample_averages(labels: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> pd.DataFrame:
    """What `averages` gives for each row of `weights` int64 [samples, N], of the same classes int64 [N]; at once.

    A class that a sample neither holds nor predicts has no part in its averages by class.
    """
    shape = len(labels), 1 + max(labels.max(), predicted.max())

    def counts(which: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return weights @ csr_matrix((which, (np.arange(len(labels)), classes)), shape)

    right = counts(labels == predicted, labels)
    actual, guessed = (counts(np.ones(len(labels)), classes) for classes in (labels, predicted))
    precision, recall, f1_score = (
        np.divide(hits, counted, out=np.zeros(hits.shape), where=counted > 0)
        for hits, counted in ((right, guessed), (right, actual), (2 * right, actual + guessed))
    )
    values = {}
    for prefix, parts in (("", actual), ("macro_", actual + guessed > 0)):
        shares = parts / parts.sum(axis=1, keepdims=True)
        for name, scores in zip(AVERAGES, (precision, recall, f1_score), strict=True):
            values[prefix + name] = (scores * shares).sum(axis=1)
    return pd.DataFrame(values)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `count` images; a count need not be whole."""
    z = norm.ppf(0.975)
    middle = share + z**2 / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((middle + side * reach) / (1 + z**2 / count) for side in (-1, 1))
    return max(min(low, share), 0.0), min(max(high, share), 1.0)  # none and all are bounds themselves, but for rounding


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Confidence against accuracy, one row per bin of confidence that holds images.

    The mean gap, weighted by `count`, is the expected calibration error (Guo et al. 2017, arXiv 1706.04599).
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    table = pd.DataFrame({"confidence": confidence.astype(float), "accuracy": correct.astype(float)})
    binned = table.groupby(_bins(confidence))
    return binned.mean().assign(count=binned.size())


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)


def _calibration_error(bins: np.ndarray, gaps: np.ndarray) -> float:
    """From each image's bin of confidence, and its gap: one if it is right, less its confidence."""
    return np.abs(np.bincount(bins, weights=gaps)).sum() / len(gaps)


def per_class(labels: np.ndarray, probabilities: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """One row per class, in the dataset's order: precision, recall, F1, support, and the 95% interval of recall.

    That interval says how much the few images of a rare class can say.
    """
    predicted = probabilities.argmax(axis=1)
    scores = class_scores(labels, predicted, labels=range(len(class_names)))
    table = pd.DataFrame(dict(zip(("class", *AVERAGES, "support"), (class_names, *scores), strict=True)))
    ends = [wilson(*pair) if pair[1] else (0.0, 1.0) for pair in zip(table["recall"], table["support"], strict=True)]
    return table.assign(recall_low=[low for low, _ in ends], recall_high=[high for _, high in ends])
