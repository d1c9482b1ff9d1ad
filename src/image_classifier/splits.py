"""Seeded, stratified train, val and test: val is carved from train, test stands apart."""

from collections import Counter

import datasets
import numpy as np
from sklearn.model_selection import train_test_split

from image_classifier.config import Data
from image_classifier.errors import UserError


def split(source: datasets.DatasetDict, data: Data, seed: int) -> dict[str, datasets.Dataset]:
    """Return the datasets `train`, `val` and `test`.

    Raises:
        UserError: there is no test split and none may be carved, or a class is too small to share.
    """
    train, test = source["train"], source.get("test")
    if test is None:
        if data.test_fraction is None:
            raise UserError(f"data.source = {data.source} has no test split: set data.test_fraction to carve one")
        train, test = _carve(train, data.test_fraction, seed, "data.test_fraction")
    train, val = _carve(train, data.val_fraction, seed, "data.val_fraction")
    if data.subset_size is not None:
        train = train.select(_balanced(np.asarray(train["label"]), data.subset_size, seed))
    return {"train": train, "val": val, "test": test}


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
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][:size]
    counts = np.bincount(labels[chosen], minlength=labels.max() + 1)
    if counts.max() - counts.min() > 1:
        raise UserError(
            f"data.subset_size = {size} cannot be class-balanced: the smallest class has {counts.min()} pictures"
        )
    return np.sort(chosen)
