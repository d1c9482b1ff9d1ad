import datasets
import numpy as np
import pytest

from image_classifier.core import config
from image_classifier.core.config import Data
from image_classifier.core.errors import UserError
from image_classifier.preparation import splits
from image_classifier.preparation.screen import Screen
from tests.helpers.project import DEFAULTS


def settings(**changes) -> Data:
    return config.load(DEFAULTS).data.model_copy(update=changes)


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


def test_the_published_split_halves_the_test_split():
    whole = source(60, 60)
    whole["test"] = source(20, 20)["train"]
    parts = splits.split(whole, settings(val_from="test", val_fraction=0.5, subset_size=100), seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 120, "val": 20, "test": 20}
    assert sorted([*parts["val"]["image"], *parts["test"]["image"]]) == list(range(40))
    subset = parts["train"].take(100)  # the others are in reserve
    assert [list(np.bincount(rows["label"])) for rows in (parts["test"], parts["val"], subset)] == [
        [10, 10],
        [10, 10],
        [50, 50],
    ]


def test_a_validation_split_of_the_source_is_used_when_asked_for():
    whole = source(50, 50)
    whole["validation"] = source(3, 3)["train"]
    parts = splits.split(whole, settings(val_from="validation"), seed=0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 80, "val": 6, "test": 20}


@pytest.mark.parametrize("policy", ["drop", "count"])
def test_an_image_in_two_splits_leaves_the_training_side(policy, capsys):
    screen = Screen(settings(on_duplicate=policy))
    same, other = b"1" * 32, b"2" * 32
    assert screen.admit("test", "row 0 of test", same, "cat")
    assert screen.admit("test", "row 1 of test", same, "cat")  # within one split nothing leaks
    assert screen.admit("train", "row 5 of train", same, "cat") == (policy == "count")
    assert screen.admit("train", "row 6 of train", other, "dog")
    found = {
        "contradictions": [],
        "duplicates": ["row 5 of train: also in test"],
        "near_duplicates": [],
        "unreadable": [],
    }
    assert screen.findings["train"] == found
    screen.conclude()
    assert f"1 images appear in two splits (data.on_duplicate = {policy})" in capsys.readouterr().out


def test_duplicates_and_unreadable_images_are_refused_by_default():
    screen = Screen(settings())
    screen.admit("val", "row 0 of val", b"1" * 32, "cat")
    screen.admit("train", "row 1 of train", b"1" * 32, "cat")
    with pytest.raises(
        UserError, match=r"1 images appear in two splits \(data.on_duplicate = fail; drop or count\): row 1 of train: "
    ):
        screen.conclude()
    screen.findings["train"]["unreadable"].append("a.png: truncated")
    screen.findings["test"]["unreadable"].append("b.png: not an image")
    with pytest.raises(UserError, match="2 images cannot be read .*a.png: truncated; b.png: not an image"):
        screen.conclude()


def test_a_subset_is_class_balanced_and_leaves_val_and_test_alone():
    full = splits.split(source(100, 100, 100), settings(), seed=0)
    cut = splits.split(source(100, 100, 100), settings(subset_size=50), seed=0)
    counts = np.bincount(cut["train"]["label"][:50])
    assert sorted(cut["train"]["image"]) == sorted(full["train"]["image"])  # those behind the 50 are in reserve
    assert counts.sum() == 50 and counts.max() - counts.min() <= 1
    assert [len(cut[name]) for name in ("val", "test")] == [len(full[name]) for name in ("val", "test")]


@pytest.mark.parametrize(
    ("counts", "changes", "expected"),
    [
        ((50, 50), {"test_fraction": None}, "has no test split: set data.test_fraction"),
        ((50, 1), {}, "cannot share out the class 'class 1': it has 1 image"),
        ((50, 50), {"subset_size": 1000}, "data.subset_size = 1000, but the training split has 70 images"),
        ((50, 50), {"val_from": "validation"}, "has no validation split"),
        ((90, 10), {"subset_size": 60}, "data.subset_size = 60 cannot be class-balanced"),
    ],
)
def test_what_cannot_be_split_is_refused_in_one_line(counts, changes, expected):
    with pytest.raises(UserError) as error:
        splits.split(source(*counts), settings(**changes), seed=0)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_counted_contradictions_are_still_held_to_the_rule_for_duplicates():
    screen = Screen(settings(on_contradiction="count", on_duplicate="drop"))
    same = b"1" * 32
    assert screen.admit("test", "row 0 of test", same, "cat")
    assert screen.admit("test", "row 1 of test", same, "dog")
    assert not screen.admit("train", "row 2 of train", same, "dog")
    assert screen.findings["train"]["duplicates"] == ["row 2 of train: also in test"]


def test_a_fraction_that_takes_all_groups_is_one_line():
    whole = source(10, 10)
    whole["train"] = whole["train"].add_column("group", [f"patient {n % 2}" for n in range(20)])
    with pytest.raises(UserError, match="data.group: 0.6 of 2 groups is all of them: choose a smaller fraction"):
        splits.split(whole, settings(test_fraction=0.6, group="group"), seed=0)


@pytest.mark.parametrize(("classes", "groups"), [(20, 10), (20, 5), (50, 8)])
def test_groups_inside_the_classes_leave_each_class_on_both_sides(classes, groups):
    """As folders inside the classes are: no random way does that, where there are many classes."""
    whole = source(*[10 * groups] * classes)
    names = [f"{label} {n // 10}" for label in range(classes) for n in range(10 * groups)]
    whole["train"] = whole["train"].add_column("group", names)
    parts = splits.split(whole, settings(val_from="train", group="group"), seed=0)
    for rows in parts.values():
        assert len(set(rows["label"])) == classes
    sides = [set(rows["group"]) for rows in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == classes * groups


def test_a_part_is_never_many_times_what_was_asked_for(capsys):
    """Some classes lie in two groups alone: a tenth cannot have one of them without being half."""
    whole = source(*[60] * 30)
    groups = [f"{label} {n % (2 if label < 12 else 20)}" for label in range(30) for n in range(60)]
    whole["train"] = whole["train"].add_column("group", groups)
    with pytest.raises(UserError, match=r"puts all 60 images of the class .* on one side"):
        splits.split(whole, settings(test_fraction=0.1, group="group"), seed=0)


def test_a_part_of_another_size_than_asked_for_is_told(capsys):
    whole = source(40, 40)
    groups = [f"{label} {n // 10}" for label in range(2) for n in range(40)]
    whole["train"] = whole["train"].add_column("group", groups)
    splits.split(whole, settings(test_fraction=0.125, val_fraction=0.4, group="group"), seed=0)
    assert "prepare: data.test_fraction = 0.125 takes 25.0% of the images, because groups stay whole" in (
        capsys.readouterr().out
    )
