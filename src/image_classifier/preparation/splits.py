"""Seeded, stratified train, val and test that share no group."""

import math
import warnings
from itertools import combinations

import datasets
import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, train_test_split

from image_classifier.core.config import Data
from image_classifier.core.errors import UserError


def split(source: datasets.DatasetDict, data: Data, seed: int) -> dict[str, datasets.Dataset]:
    """Return the datasets `test`, `val` and `train`, in this order.

    With `data.subset_size` the first images of train are the subset; those after it take the places
    of images that are left out, so that the subset stays whole and balanced.

    Raises UserError: a split is missing and none may be carved, or a class is too small to share.
    """
    train, test = source["train"], source.get("test")
    if test is None:
        if data.test_fraction is None:
            raise UserError(f"data.source = {data.source} has no test split: set data.test_fraction to carve one")
        train, test = _carve(train, data.test_fraction, seed, "data.test_fraction")
    if data.val_from == "validation":
        if "validation" not in source:
            raise UserError(f"data.val_from = validation, but data.source = {data.source} has no validation split")
        val = source["validation"]
    elif data.val_from == "test":
        test, val = _carve(test, data.val_fraction, seed, "data.val_fraction")
    else:
        train, val = _carve(train, data.val_fraction, seed, "data.val_fraction")
    if data.subset_size is not None:
        labels = np.asarray(train["label"])
        chosen = _balanced(labels, data.subset_size, seed)
        train = train.select(np.concatenate([chosen, np.setdiff1d(np.arange(len(labels)), chosen)]))
    parts = {"test": test, "val": val, "train": train}
    _check_groups(parts, data.group)
    return parts


def _carve(
    dataset: datasets.Dataset, fraction: float, seed: int, key: str
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off `fraction` of a dataset, as many of each class as its share; whole groups, where there are any."""
    labels, names = np.asarray(dataset["label"]), dataset.features["label"].names
    counts = np.bincount(labels, minlength=len(names))
    if counts.min() < 2:
        raise UserError(
            f"{key} = {fraction} cannot share out the class {names[counts.argmin()]!r}: it has {counts.min()} image; "
            "each class needs 2 or more"
        )
    if "group" in dataset.column_names:
        rest, part = _grouped(labels, np.asarray(dataset["group"]), fraction, seed)
        if abs((share := len(part) / len(labels)) - fraction) > fraction / 4:
            print(f"prepare: {key} = {fraction} takes {share:.1%} of the images, because groups stay whole")
    else:
        size = math.ceil(fraction * len(labels))
        if min(size, len(labels) - size) < len(names):
            least = math.ceil(100 * len(names) / len(labels)) / 100
            way = f"choose {least} to {1 - least:.2f}" if least <= 0.5 else "add images, or leave classes out"
            raise UserError(
                f"{key} = {fraction} of {len(labels)} images is {size}, which leaves less than one of each of the "
                f"{len(names)} classes on one side: {way}"
            )
        rest, part = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels)
    for side in (rest, part):
        found = np.bincount(labels[side], minlength=len(names))
        if not found.min():
            name, count = names[found.argmin()], counts[found.argmin()]
            raise UserError(
                f"{key} = {fraction} puts all {count} images of the class {name!r} on one side: a class needs "
                f"{math.ceil(1 / min(fraction, 1 - fraction))} or more at this fraction"
                + (", in several groups" if "group" in dataset.column_names else "")
            )
    return dataset.select(np.sort(rest)), dataset.select(np.sort(part))


def _grouped(labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both sides, each group on one of them.

    The best of 200 random splits: every class on both sides, and class shares closest to the fraction. If none has
    every class on both sides, as when each group holds one class, the best stratified one, up to twice the fraction.
    """
    number = len(np.unique(groups))
    if number < 2:
        raise UserError(f"data.group: all images are of one group, {groups[0]}: there is nothing to share out")
    if math.ceil(fraction * number) >= number:
        raise UserError(f"data.group: {fraction} of {number} groups is all of them: choose a smaller fraction")
    counts = np.bincount(labels)

    def unlike(way: tuple[np.ndarray, np.ndarray]) -> tuple[bool, float]:
        share = np.bincount(labels[way[1]], minlength=len(counts)) / counts
        return share.min() == 0 or share.max() == 1, np.abs(share - fraction).max()

    way = min(GroupShuffleSplit(200, test_size=fraction, random_state=seed).split(labels, labels, groups), key=unlike)
    fewest = min(len(np.unique(groups[labels == label])) for label in range(len(counts)))  # that a class is in
    folds = min(round(1 / fraction), fewest)
    if unlike(way)[0] and folds >= 2 and 1 / folds <= 2 * fraction:  # slower, and may take more than the fraction
        with warnings.catch_warnings(action="ignore"):  # of a class with less images than folds
            balanced = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
            way = min(balanced, key=unlike)
    return way


def _check_groups(parts: dict[str, datasets.Dataset], group: str | None) -> None:
    """Refuse splits of the source's own that share a group."""
    if group is None:
        return
    sides = {name: set(rows["group"]) for name, rows in parts.items()}
    for one, other in combinations(sides, 2):
        if shared := sorted(sides[one] & sides[other]):
            raise UserError(
                f"data.group = {group}: {len(shared)} groups are in {one} and in {other}, such as {shared[0]}: put "
                "each on one side"
            )


def _balanced(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices of `size` items, seeded, with class counts that differ by at most one."""
    if size > len(labels):
        raise UserError(f"data.subset_size = {size}, but the training split has {len(labels)} images")
    order = np.random.default_rng(seed).permutation(len(labels))
    # The rank of each item within its class; taking the lowest ranks first deals classes in turn.
    rank = pd.Series(labels[order]).groupby(labels[order]).cumcount()
    chosen = order[np.argsort(rank, kind="stable")][:size]
    counts = np.bincount(labels[chosen], minlength=labels.max() + 1)
    if counts.max() - counts.min() > 1:
        raise UserError(
            f"data.subset_size = {size} cannot be class-balanced: the smallest class has {counts.min()} images"
        )
    return np.sort(chosen)
