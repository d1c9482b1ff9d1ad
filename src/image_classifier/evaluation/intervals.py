"""How far scores can be relied on: 95 % intervals, top-k accuracy, calibration."""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.stats import binomtest
from sklearn.metrics import top_k_accuracy_score

from image_classifier.model.scores import AVERAGES, averages, class_scores

CALIBRATION_BINS = 10  # of confidence, equally wide
RESAMPLES = 1000  # of the bootstrap


def confidence_intervals(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Every score with its 95 % interval, one row each: value, low, high; indexed by the score's name.

    `labels` are int64 [N], `probabilities` float [N, classes]. Shares of the images have Wilson's interval. The others
    have percentiles of a bootstrap over the images, which draws the same samples every time, less the bootstrap's own
    bias: a sample lacks some of the images, and where a class has few of them its scores fall short of the value.
    """
    predicted = probabilities.argmax(axis=1)
    rows = {"accuracy": _share(int((predicted == labels).sum()), len(labels))}
    for k in (2, 5):
        if k < (classes := probabilities.shape[1]):
            hits = top_k_accuracy_score(labels, probabilities, k=k, labels=range(classes), normalize=False)
            rows[f"top_{k}_accuracy"] = _share(int(hits), len(labels))
    rest = _bootstrapped(labels, probabilities)
    rest.loc["recall"] = rows["accuracy"]  # weighted by class, it is the same share
    if rows["accuracy"][0] == 1:  # without a mistake every sample is as perfect
        rest.loc[list(averages(labels, predicted)), "low"] = rows["accuracy"][1]
    return pd.concat([pd.DataFrame(rows, ["value", "low", "high"]).T, rest])


def _share(hits: int, count: int) -> tuple[float, float, float]:
    return hits / count, *wilson(hits, count)


def _bootstrapped(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """The rows of `confidence_intervals` that are no shares: precision, recall, F1, loss, calibration error."""
    predicted, rng = probabilities.argmax(axis=1), np.random.default_rng(0)
    # Each pair of classes once, weighted by how often a sample draws it: the time does not grow with N.
    pairs, counts = np.unique([labels, predicted], axis=1, return_counts=True)
    weights = rng.multinomial(len(labels), counts / len(labels), size=RESAMPLES)
    samples = sample_averages(pairs[0], pairs[1], weights)
    losses = -np.log(probabilities[np.arange(len(labels)), labels].clip(np.finfo(probabilities.dtype).eps))
    confidence = probabilities.max(axis=1)
    bins, gaps = _bins(confidence), (predicted == labels) - confidence.astype(float)
    drawn = []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(labels), size=len(labels))
        drawn.append((losses[rows].mean(), _calibration_error(bins[rows], gaps[rows])))
    samples[["loss", "calibration_error"]] = drawn
    own = averages(labels, predicted) | {"loss": losses.mean(), "calibration_error": _calibration_error(bins, gaps)}
    table = pd.DataFrame({"value": pd.Series(own, dtype=float)})
    bias = samples.mean() - table["value"]
    for name, quantile in (("low", 0.025), ("high", 0.975)):
        bound = (samples.quantile(quantile) - bias).clip(lower=0)
        table[name] = bound.where(bound.index == "loss", bound.clip(upper=1))
    return table


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


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `hits` of `count`."""
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return interval.low, interval.high


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
    """One row per class, in the dataset's order: precision, recall, F1, support, and the 95 % interval of recall.

    That interval says how much the few images of a rare class can say.
    """
    predicted = probabilities.argmax(axis=1)
    scores = class_scores(labels, predicted, labels=range(len(class_names)))
    table = pd.DataFrame(dict(zip(("class", *AVERAGES, "support"), (class_names, *scores), strict=True)))
    hits = np.bincount(labels[labels == predicted], minlength=len(class_names))
    ends = [
        wilson(*pair) if pair[1] else (0.0, 1.0)
        for pair in zip(hits.tolist(), table["support"].astype(int), strict=True)
    ]
    return table.assign(recall_low=[low for low, _ in ends], recall_high=[high for _, high in ends])
