"""Seeded, stratified train, val and test that share no picture."""

from collections import Counter, defaultdict

import datasets
import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from image_classifier.config import Data
from image_classifier.errors import UserError


def split(source: datasets.DatasetDict, data: Data, seed: int) -> dict[str, datasets.Dataset]:
    """Return the datasets `test`, `val` and `train`, in this order.

    With `data.subset_size` the first pictures of train are the subset; those after it take the places
    of pictures that are left out, so that the subset stays whole and balanced.

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
    return {"test": test, "val": val, "train": train}


def _carve(
    dataset: datasets.Dataset, fraction: float, seed: int, key: str
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off `fraction` of a dataset, as many of each class as its share."""
    labels = np.asarray(dataset["label"])
    try:
        rest, part = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels)
    except ValueError as error:
        smallest, count = Counter(labels.tolist()).most_common()[-1]
        name = dataset.features["label"].int2str(smallest)
        raise UserError(
            f"{key} = {fraction} cannot share out {len(labels)} pictures; "
            f"the smallest class, {name!r}, has {count}: {error}"
        ) from None
    return dataset.select(np.sort(rest)), dataset.select(np.sort(part))


def _balanced(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices of `size` items, seeded, with class counts that differ by at most one."""
    if size > len(labels):
        raise UserError(f"data.subset_size = {size}, but the training split has {len(labels)} pictures")
    order = np.random.default_rng(seed).permutation(len(labels))
    # The rank of each item within its class; taking the lowest ranks first deals classes in turn.
    rank = pd.Series(labels[order]).groupby(labels[order]).cumcount()
    chosen = order[np.argsort(rank, kind="stable")][:size]
    counts = np.bincount(labels[chosen], minlength=labels.max() + 1)
    if counts.max() - counts.min() > 1:
        raise UserError(
            f"data.subset_size = {size} cannot be class-balanced: the smallest class has {counts.min()} pictures"
        )
    return np.sort(chosen)


class Screen:
    """Decides which pictures may enter a split, and keeps what it found for one report at the end.

    Splits pass in the order test, val, train, so that a picture found in two of them leaves the
    training side and test stays whole.
    """

    def __init__(self, data: Data):
        self.data = data
        self.seen: dict[bytes, str] = {}  # SHA-256 of the pixels -> the split they came in with
        # split -> what -> where and why
        self.findings: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"duplicates": [], "unreadable": []})

    def admit(self, split: str, where: str, digest: bytes) -> bool:
        """Whether the picture found at `where`, with these pixels, belongs in `split`."""
        first = self.seen.setdefault(digest, split)
        if first == split:
            return True
        self.findings[split]["duplicates"].append(f"{where}: also in {first}")
        return self.data.on_duplicate == "count"

    def conclude(self) -> None:
        """Say what was found.

        Raises UserError: there are findings which the settings do not allow.
        """
        for key, setting, kind, what, ways in (
            ("data.on_unreadable", self.data.on_unreadable, "unreadable", "cannot be read", "remove them, or skip"),
            ("data.on_duplicate", self.data.on_duplicate, "duplicates", "stand in two splits", "drop or count"),
        ):
            listed = [line for found in self.findings.values() for line in found[kind]]
            if listed and setting == "fail":
                raise UserError(f"{len(listed)} pictures {what} ({key} = fail; {ways}): " + "; ".join(listed))
            if listed:
                print(f"prepare: {len(listed)} pictures {what} ({key} = {setting}); listed in each index.json")
