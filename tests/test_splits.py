import datasets
import numpy as np
import pytest

from image_classifier import config, sources, splits
from image_classifier.config import Data
from image_classifier.errors import UserError


def settings(**changes) -> Data:
    return config.load().data.model_copy(update=changes)


def source(*counts: int) -> datasets.DatasetDict:
    """A source with these many items per class; `image` is the item's number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    features = datasets.Features(
        {
            "image": datasets.Value("int64"),
            "label": datasets.ClassLabel(names=[f"class {n}" for n in range(len(counts))]),
        }
    )
    rows = {"image": np.arange(len(labels)), "label": labels}
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})


def test_digits_are_real_and_complete():
    digits = sources.load(settings())["train"]
    assert len(digits) == 1797
    assert sources.class_names(digits) == list("0123456789")


def test_another_source_is_refused():
    with pytest.raises(UserError, match="data.source = uoft-cs/cifar10 cannot be loaded yet"):
        sources.load(settings(source="uoft-cs/cifar10"))


def test_splits_share_no_item_and_are_stratified():
    parts = splits.split(source(100, 200), settings(), seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 210, "val": 30, "test": 60}
    items = [set(rows["image"]) for rows in parts.values()]
    assert len(set.union(*items)) == 300
    for rows in parts.values():
        assert abs(np.mean(rows["label"]) - 2 / 3) < 0.01


def test_the_seed_decides_the_split():
    first, again, other = (splits.split(source(50, 50), settings(), seed)["test"]["image"] for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)


def test_a_test_split_of_the_source_stays_untouched():
    whole = source(50, 50)
    whole["test"] = whole["train"].select(range(40, 60))
    assert list(splits.split(whole, settings(), seed=0)["test"]["image"]) == list(range(40, 60))


def test_a_subset_is_class_balanced_and_leaves_val_and_test_alone():
    full = splits.split(source(100, 100, 100), settings(), seed=0)
    cut = splits.split(source(100, 100, 100), settings(subset_size=50), seed=0)
    counts = np.bincount(cut["train"]["label"])
    assert counts.sum() == 50 and counts.max() - counts.min() <= 1
    assert [len(cut[name]) for name in ("val", "test")] == [len(full[name]) for name in ("val", "test")]


@pytest.mark.parametrize(
    ("counts", "changes", "expected"),
    [
        ((50, 50), {"test_fraction": None}, "has no test split: set data.test_fraction"),
        ((50, 1), {}, "the smallest class, 'class 1', has 1"),
        ((50, 50), {"subset_size": 1000}, "data.subset_size = 1000, but the training split has 70 pictures"),
        ((90, 10), {"subset_size": 60}, "data.subset_size = 60 cannot be class-balanced"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_line(counts, changes, expected):
    with pytest.raises(UserError) as error:
        splits.split(source(*counts), settings(**changes), seed=0)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
