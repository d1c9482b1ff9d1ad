"""Is the gain real? Two models, or two sets of them, paired on the same test images."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dvc.api
import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, t

from image_classifier.core import lock
from image_classifier.core.errors import UserError, printable

PREDICTIONS = "metrics/evaluate/predictions.csv"
LOCK = "dvc.lock"
WORKSPACE = "workspace"  # what DVC calls the files that lie here
SHOWN = 10  # classes


def main(a: str, b: str) -> int:
    """Print how model `b` differs from model `a`, on one screen; each is an experiment or a revision.

    For several seeds, give as many models on each side, separated by commas. They are compared in pairs, in the order
    given.

    Raises UserError: one cannot be read, their test images differ, or those of one side differ in more than the seed.
    """
    before, after = ([name.strip() for name in names.split(",")] for names in (a, b))
    if not all(before + after):
        raise UserError(f"{a} {b}: a name is empty: write A1,A2,A3 without a comma at the end")
    if len(before) != len(after):
        raise UserError(f"{len(before)} models against {len(after)}: they are compared in pairs, so give as many")
    right = _right(before + after)
    stages = [_stages(model) for model in before + after]
    theirs, ours = _params_of(before, stages[: len(before)]), _params_of(after, stages[len(before) :])
    actual = right.index.get_level_values("actual")
    first, second = right.iloc[:, : len(before)].to_numpy(), right.iloc[:, len(before) :].to_numpy()
    print(f"{', '.join(after)} against {', '.join(before)}, on the same {len(right)} test images")
    if len(before) == 1:
        _print_pair(a, b, first, second)
    else:
        _print_seeds(first, second)
    moved = pd.DataFrame({"a": first.sum(axis=1), "b": second.sum(axis=1)}).groupby(actual).mean() / len(before)
    moved = moved.assign(change=moved["b"] - moved["a"]).query("change != 0")
    for name, row in moved.sort_values("change", key=abs, ascending=False, kind="stable")[:SHOWN].iterrows():
        print(f"  recall      {printable(name)}: {row['a']:.4f} -> {row['b']:.4f}, {row['change']:+.4f}")
    if len(moved) > SHOWN:
        print(f"  recall      of {len(moved) - SHOWN} more classes changed by no more than these")
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key) and (key != "seed" or len(before) == 1):
            print(f"  param       {key}: {theirs.get(key)} -> {ours.get(key)}")
    inputs = pd.DataFrame([lock.inputs_of_run(one) for one in stages]).fillna("")
    if changed := sorted(inputs.columns[inputs.nunique() > 1]):
        print(f"  note        the models were made from different data or code: {', '.join(changed)}")
    if ours.get("data.group"):
        print("  note        images of the same group (data.group) are correlated, but treated as independent here")
    return 0


def _right(models: list[str]) -> pd.DataFrame:
    """Which test images each model gets right: a column for each, rows by image and actual class."""
    tables = [_predictions(model) for model in models]
    names = tables[0][["image", "actual"]]
    for model, rows in zip(models, tables, strict=True):
        if not names.equals(rows[["image", "actual"]]):
            shared = len(set(names["image"]) & set(rows["image"]))
            raise UserError(
                f"{models[0]} was tested on {len(names)} images and {model} on {len(rows)}, {shared} of them the same: "
                "only models with the same test images and labels can be compared (where data.test_fraction takes them "
                "from the training images, another seed takes others)"
            )
    index = pd.MultiIndex.from_frame(names)
    columns = [pd.Series((rows["predicted"] == rows["actual"]).to_numpy(), index) for rows in tables]
    return pd.concat(columns, axis=1)


def _print_pair(a: str, b: str, first: np.ndarray, second: np.ndarray) -> None:
    """Two models: the difference, and McNemar's test."""
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    _print_accuracy(first, second, interval(only_a, only_b, len(first)))
    # McNemar's test, exact: without a difference each image that one alone gets right is a coin toss.
    chance = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    verdict = "significant at the 5% level" if chance < 0.05 else "not significant at the 5% level"
    print(f"  images      {only_b} that {b} alone gets right, {only_a} that {a} alone does")
    print(f"  McNemar     p = {chance:.2g}: {verdict} (for these two models; another seed is another model)")


def _print_seeds(first: np.ndarray, second: np.ndarray) -> None:
    """Several pairs: the mean difference, with an interval for other seeds and other test images."""
    gains = second.astype(float) - first
    low, high = interval_over_seeds(gains)
    _print_accuracy(first, second, (low, high))
    print(f"  pairs       {', '.join(f'{gain:+.4f}' for gain in gains.mean(axis=0))}")
    verdict = "significant" if low > 0 or high < 0 else "not significant"
    print(f"  verdict     {verdict} at the 5% level, allowing for other seeds and other test images")


def _print_accuracy(first: np.ndarray, second: np.ndarray, bounds: tuple[float, float]) -> None:
    before, after, (low, high) = first.mean(), second.mean(), bounds
    print(f"  accuracy    {before:.4f} -> {after:.4f}, {after - before:+.4f}, ", end="")
    print(f"95% interval of the difference {low:+.4f} to {high:+.4f}")


def interval_over_seeds(gains: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean of `gains` [images, seeds], each -1, 0 or 1, for other images and other seeds.

    Images and seeds are crossed random factors; degrees of freedom by Hillis 2007, "A comparison of denominator degrees
    of freedom methods for multiple observer ROC analysis", Statistics in Medicine 26, whose readers are our seeds.
    """
    images, seeds = gains.shape
    of_image, of_seed = gains.mean(axis=1, keepdims=True), gains.mean(axis=0, keepdims=True)
    rest = ((gains - of_image - of_seed + gains.mean()) ** 2).sum() / ((images - 1) * (seeds - 1))
    between_seeds = max(images * of_seed.var(ddof=1), rest)  # or seeds that happen to tie shrink it to nothing
    between_images = max(0.0, seeds * of_image.var(ddof=1) - rest)
    total = between_seeds + between_images
    freedom = (seeds - 1) * (total / between_seeds) ** 2 if between_seeds else math.inf
    spread = t.ppf(0.975, freedom) * math.sqrt(total / (images * seeds))
    return max(-1.0, gains.mean() - spread), min(1.0, gains.mean() + spread)


def interval(only_a: int, only_b: int, count: int) -> tuple[float, float]:
    """The 95% interval of the difference of two accuracies on the same images.

    Wald's, with half an image added to each cell, which keeps it honest for few: Agresti and Min 2005,
    "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24.
    """
    a, b, count = only_a + 0.5, only_b + 0.5, count + 2
    spread = norm.ppf(0.975) * math.sqrt(a + b - (b - a) ** 2 / count) / count
    return max(-1.0, (b - a) / count - spread), min(1.0, (b - a) / count + spread)


def _read(path: str, revision: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(dvc.api.read(path, rev=revision) if revision != WORKSPACE else Path(path).read_text())
    except UserError:
        raise
    except Exception as error:  # of DVC, git and files
        raise UserError(f"{revision}: {path} cannot be read ({error}): `dvc exp show` lists what there is") from None


def _predictions(revision: str) -> pd.DataFrame:
    def parse(text: str) -> pd.DataFrame:
        rows = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        return rows.sort_values(["image", "actual"], kind="stable", ignore_index=True)

    return _read(PREDICTIONS, revision, parse)


def _stages(revision: str) -> dict[str, Any]:
    return _read(LOCK, revision, lambda text: lock.stages_of(text, f"{LOCK} of {revision}"))


def _params_of(models: list[str], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The params of the first model, which the others share but for the seed.

    Raises UserError: they do not, or a seed comes twice.
    """
    found = [lock.params_of_run(one, f"{LOCK} of {model}") for model, one in zip(models, stages, strict=True)]
    if len({values.get("seed") for values in found}) < len(models):
        raise UserError(f"{', '.join(models)}: a seed comes twice: give models that were trained with different seeds")
    for model, values in zip(models, found, strict=True):
        if odd := [name for name in found[0] | values if name != "seed" and values.get(name) != found[0].get(name)]:
            raise UserError(f"{models[0]} and {model} differ in {', '.join(odd)}: only the seed may differ")
    return found[0]
