"""Galleries of predictions, as picture files; the only importer of matplotlib."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from image_classifier.shards import ShardReader

SHOWN, COLUMNS = 24, 8  # pictures of a gallery
TILE = 1.1, 1.5  # inches, with the two lines above the picture


def gallery(path: Path, predictions: pd.DataFrame, shards: ShardReader) -> None:
    """Draw the pictures of these rows of predictions.csv, each under what it was taken for and, if wrong, what it is.

    The index of `predictions` holds the pictures' numbers in `shards`.
    """
    rows = max(1, -(-len(predictions) // COLUMNS))
    figure = Figure(figsize=(COLUMNS * TILE[0], rows * TILE[1]), dpi=90, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    if predictions.empty:
        figure.text(0.5, 0.5, "none", ha="center", va="center")
    found = zip(axes, predictions.itertuples(), shards.gather(predictions.index.to_numpy()), strict=False)
    for axis, row, pixels in found:
        wrong = row.actual != row.predicted
        title = f"{row.predicted:.14}\n{row.confidence:.0%}" + (f", is {row.actual:.10}" if wrong else "")
        axis.set_title(title, fontsize=8, color="firebrick" if wrong else "black", parse_math=False)
        axis.imshow(pixels.numpy())
    figure.savefig(path, metadata={"Software": None})  # or another matplotlib would give other bytes
