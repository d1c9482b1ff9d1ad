"""Is the gain real? Two models, paired on the same test images."""

import io
import math
from pathlib import Path
from typing import Any

import dvc.api
import pandas as pd
from scipy.stats import binomtest, norm

from image_classifier.core.errors import UserError

PREDICTIONS = "metrics/evaluate/predictions.csv"
WORKSPACE = "workspace"  # what DVC calls the files that lie here
SHOWN = 10  # classes


def main(a: str, b: str) -> int:
    """Print how model `b` differs from model `a`, both experiments or revisions, on one screen.

    Raises UserError: one cannot be read, or their test images differ.
    """
    first, second = _predictions(a), _predictions(b)
    if not first[["image", "actual"]].equals(second[["image", "actual"]]):
        shared = len(set(first["image"]) & set(second["image"]))
        raise UserError(
            f"{a} was tested on {len(first)} images and {b} on {len(second)}, {shared} of them the same: only models "
            "with the same test images and labels can be compared"
        )
    right = pd.DataFrame({model: rows["predicted"] == rows["actual"] for model, rows in (("a", first), ("b", second))})
    only_a, only_b = int((right["a"] & ~right["b"]).sum()), int((right["b"] & ~right["a"]).sum())
    low, high = interval(only_a, only_b, len(right))
    # McNemar's test, exact: without a difference each image that one alone gets right is a coin toss.
    chance = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    print(f"{b} against {a}, on the same {len(right)} test images")
    before, after = right["a"].mean(), right["b"].mean()
    print(f"  accuracy    {before:.4f} -> {after:.4f}, {after - before:+.4f}, ", end="")
    print(f"95% interval of the difference {low:+.4f} to {high:+.4f}")
    print(f"  images      {only_b} that {b} alone gets right, {only_a} that {a} alone does")
    verdict = "significant at the 5% level" if chance < 0.05 else "not significant at the 5% level"
    print(f"  McNemar     p = {chance:.2g}: {verdict} (for these two models; another seed is another model)")
    moved = right.groupby(first["actual"]).mean().assign(change=lambda recall: recall["b"] - recall["a"])
    moved = moved[moved["change"] != 0].sort_values("change", key=abs, ascending=False, kind="stable")
    for name, row in moved[:SHOWN].iterrows():
        print(f"  recall      {name}: {row['a']:.4f} -> {row['b']:.4f}, {row['change']:+.4f}")
    ours, theirs = _params(b), _params(a)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            print(f"  param       {key}: {theirs.get(key)} -> {ours.get(key)}")
    return 0


def interval(only_a: int, only_b: int, count: int) -> tuple[float, float]:
    """The 95% interval of the difference of two accuracies on the same images.

    Wald's, with half an image added to each cell, which keeps it honest for few: Agresti and Min 2005,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24.
    """
    a, b, count = only_a + 0.5, only_b + 0.5, count + 2
    spread = norm.ppf(0.975) * math.sqrt(a + b - (b - a) ** 2 / count) / count
    return max(-1.0, (b - a) / count - spread), min(1.0, (b - a) / count + spread)


def _predictions(revision: str) -> pd.DataFrame:
    try:
        read = dvc.api.read(PREDICTIONS, rev=revision) if revision != WORKSPACE else Path(PREDICTIONS).read_text()
        rows = pd.read_csv(io.StringIO(read), dtype=str, keep_default_na=False)
    except Exception as error:  # of DVC, git and files
        raise UserError(
            f"{revision}: {PREDICTIONS} cannot be read ({error}): `dvc exp show` lists what there is"
        ) from None
    return rows.sort_values(["image", "actual"], kind="stable", ignore_index=True)


def _params(revision: str) -> dict[str, Any]:
    values = dvc.api.params_show(rev=None if revision == WORKSPACE else revision, deps=True)
    return pd.json_normalize(values).to_dict("records")[0]
