"""Draw the README's pictures of the last run from its metrics, as `make repro` does: `python -m docs.pictures`."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

ROOT = Path(__file__).resolve().parent.parent
SERIES, PREDICTIONS = ROOT / "metrics/train/plots/metrics", ROOT / "metrics/evaluate/predictions.csv"


def curves() -> Figure:
    """Loss and accuracy of train and val, epoch by epoch."""
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "-"), ("val", "--")):
            values = pd.read_csv(SERIES / f"{split}_{name}.tsv", sep="\t")[f"{split}_{name}"]
            axis.plot(range(1, len(values) + 1), values, style, color="#6f3fa0", label=split)
        axis.set(xlabel="epoch", ylabel=name)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def confusion() -> Figure:
    """How many pictures of each class were taken for which."""
    rows = pd.read_csv(PREDICTIONS, dtype=str, keep_default_na=False)
    figure = Figure(figsize=(4, 4), dpi=80, layout="constrained")
    axis = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        rows["actual"], rows["predicted"], ax=axis, cmap="Purples", colorbar=False, text_kw={"fontsize": 8}
    )
    axis.set(xlabel="predicted", ylabel="actual")
    return figure


if __name__ == "__main__":
    for draw in (curves, confusion):
        draw().savefig(Path(__file__).with_name(f"{draw.__name__}.png"), metadata={"Software": None})
