"""Galleries and charts of an evaluation, as image files."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from image_classifier.images.shards import ShardReader

SHOWN, COLUMNS = 24, 8  # images of a gallery
TILE = 1.1, 1.65  # inches, with the three lines above the image
LETTERS = 14  # of a class's name above an image
LABELED = 30  # classes, above which a confusion matrix has no room for their names


def gallery(path: Path, predictions: pd.DataFrame, shards: ShardReader) -> None:
    """Draw the images of these rows of predictions.csv, each below its predicted and, if that is wrong, actual class.

    The index of `predictions` holds the images' numbers in `shards`.
    """
    columns = min(COLUMNS, max(4, len(predictions)))
    rows = max(1, -(-len(predictions) // columns))
    figure = Figure(figsize=(columns * TILE[0], rows * TILE[1]), dpi=90, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    if predictions.empty:
        figure.text(0.5, 0.5, "none", ha="center", va="center")
    found = zip(axes, predictions.itertuples(), shards.gather(predictions.index.to_numpy()), strict=False)
    for axis, row, pixels in found:
        wrong = row.actual != row.predicted
        lines = [_short(row.predicted), f"is {_short(row.actual)}" if wrong else "", f"{row.confidence:.0%}"]
        color = "firebrick" if wrong else "black"
        axis.set_title("\n".join(filter(None, lines)), fontsize=8, color=color, parse_math=False)
        axis.imshow(pixels.numpy())
    _save(figure, path)


def confusion(path: Path, predictions: pd.DataFrame, class_names: list[str]) -> None:
    """Draw how many images of each class were predicted as which, shaded by their share of the actual class."""
    figure = Figure(figsize=(5, 5), dpi=90, layout="constrained")
    axis = figure.subplots()
    counts = pd.crosstab(predictions["actual"], predictions["predicted"]).reindex(
        index=class_names, columns=class_names, fill_value=0
    )
    shares = counts.to_numpy() / np.maximum(counts.sum(axis=1).to_numpy()[:, None], 1)
    few = len(class_names) <= LABELED
    names = [_short(name) for name in class_names] if few else [""] * len(class_names)
    turned = "vertical" if max(map(len, names)) > 2 else "horizontal"
    ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=axis, cmap="Purples", colorbar=False, include_values=False, xticks_rotation=turned
    )
    if few:
        for (row, column), count in np.ndenumerate(counts.to_numpy()):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, count, ha="center", va="center", fontsize=7, color=color)
    else:
        axis.set(xticks=[], yticks=[])
    axis.set(xlabel="predicted", ylabel="actual")
    for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]:
        label.set(fontsize=8, parse_math=False)
    _save(figure, path)


def reliability(path: Path, bins: pd.DataFrame) -> None:
    """Draw accuracy against confidence, from the rows of `metrics.calibration`."""
    figure = Figure(figsize=(4, 3.2), dpi=90, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], ":", color="gray", linewidth=1)
    axis.plot(bins["confidence"], bins["accuracy"], "-", color="#6f3fa0", linewidth=1)
    share = bins["count"] / bins["count"].sum()
    axis.scatter(bins["confidence"], bins["accuracy"], s=20 + 180 * share, color="#6f3fa0", clip_on=False)
    axis.set(xlabel="confidence of the images", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _short(name: str) -> str:
    """The beginning and the end of a long name: it may be told from another by either."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 2]}…{name[-LETTERS // 2 + 1 :]}"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # or another matplotlib would give other bytes
