import numpy as np
import pytest

from image_classifier.evaluation.intervals import (
    _averages,
    _losses,
    calibration,
    confidence_intervals,
    per_class,
    sample_averages,
    wilson,
)
from image_classifier.model.scores import averages, classification

LABELS = np.array([0, 0, 0, 1])
PROBABILITIES = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.4, 0.6, 0], [0.3, 0.7, 0]])


def test_numbers_worked_out_by_hand():
    values = classification(LABELS, PROBABILITIES)
    assert values["accuracy"] == 3 / 4
    assert values["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean())
    # Class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1.
    assert values["precision"] == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert values["recall"] == pytest.approx((3 * 2 / 3 + 1) / 4)
    assert values["macro_f1_score"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_per_class_has_a_row_for_a_class_that_never_occurs():
    table = per_class(LABELS, PROBABILITIES, ["cat", "dog", "emu"])
    assert list(table["class"]) == ["cat", "dog", "emu"]
    assert list(table["support"]) == [3, 1, 0]
    assert table["f1_score"][2] == 0
    # Two of three right; and nothing is known of a class without images.
    assert [table[f"recall_{end}"][0] for end in ("low", "high")] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert [table[f"recall_{end}"][2] for end in ("low", "high")] == [0, 1]


def test_a_probability_of_zero_gives_a_finite_loss():
    assert np.isfinite(classification(np.array([2]), np.array([[1.0, 0.0, 0.0]]))["loss"])


def test_intervals_hold_the_value_and_shrink_with_the_images():
    small = confidence_intervals(LABELS, PROBABILITIES)
    many = confidence_intervals(np.tile(LABELS, 100), np.tile(PROBABILITIES, (100, 1)))
    values = classification(LABELS, PROBABILITIES)
    for name, value in values.items():
        for found in (small, many):
            assert found.at[name, "low"] <= value <= found.at[name, "high"], name
        widths = [found.at[name, "high"] - found.at[name, "low"] for found in (many, small)]
        assert widths[0] < widths[1], name
    assert small.equals(confidence_intervals(LABELS, PROBABILITIES))  # the same samples every time


def test_the_averages_of_samples_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 5, (2, 30))
    weights = random.multinomial(8, np.full(30, 1 / 30), size=200)  # so few that classes are missing
    found = sample_averages(labels, predicted, weights)
    for row, drawn in enumerate(weights):
        kept = np.repeat(np.arange(30), drawn)
        assert found.loc[row].to_dict() == pytest.approx(averages(labels[kept], predicted[kept]))


def test_a_single_image_of_two_classes_has_intervals_too():
    found = confidence_intervals(np.array([1]), np.array([[0.2, 0.8]]))
    assert found.at["accuracy", "low"] < 0.3 and found.at["accuracy", "high"] == pytest.approx(1)
    assert np.isfinite(found.to_numpy()).all()


def test_wilsons_interval_is_the_one_in_the_books():
    labels, right = np.zeros(10, int), np.arange(10) < 8
    found = confidence_intervals(labels, np.stack([np.where(right, 0.9, 0.1), np.where(right, 0.1, 0.9)], axis=1))
    assert (found.at["accuracy", "low"], found.at["accuracy", "high"]) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_the_interval_of_averages_is_that_of_a_share_where_they_are_one():
    """Weighted recall is accuracy, whose variance in a bootstrap is known."""
    labels, right = np.arange(400) % 4, np.arange(400) % 5 > 0
    found = _averages(labels, np.where(right, labels, (labels + 1) % 4))["recall"]
    assert found == pytest.approx((0.8, *wilson(0.8, 400)), abs=0.003)


@pytest.mark.parametrize(
    ("sizes", "share", "names"),
    [
        ([36] * 10, 0.99, ["macro_precision", "macro_recall", "macro_f1_score"]),
        ([1000, 10], 0.95, ["macro_recall"]),
        ([200, 200, 200, 10], 0.9, ["macro_recall"]),
    ],
)
def test_intervals_of_averages_hold_in_19_of_20_tests(sizes, share, names):
    """A bootstrap's percentiles hold the truth in 89 of 100 near 1, and in fewer where a class is small."""
    random, classes, tests = np.random.default_rng(0), len(sizes), 300
    labels = np.repeat(np.arange(classes), sizes)
    holding = np.zeros(len(names))
    for _ in range(tests):
        others = (labels + random.integers(1, classes, len(labels))) % classes
        found = _averages(labels, np.where(random.random(len(labels)) < share, labels, others))
        holding += [found[name][1] <= share <= found[name][2] for name in names]
    assert (holding / tests > 0.93).all()


def test_five_images_of_a_class_say_little_of_an_average_by_class():
    labels = np.repeat([0, 1], [1000, 5])
    for predicted in (labels, np.r_[1, labels[1:]]):  # no mistake, and one in the large class
        value, low, high = _averages(labels, predicted)["macro_recall"]
        assert low < 0.85 and value <= high
        assert low == pytest.approx(wilson(value, 4 / (1 / 1000 + 1 / 5))[0])


@pytest.mark.filterwarnings("error")
def test_a_model_that_says_one_class_has_intervals_without_a_warning():
    found = _averages(np.repeat([0, 1], 5), np.zeros(10, int))
    assert all(low <= value <= high for value, low, high in found.values())


@pytest.mark.parametrize("overconfident", [1.0, 1.3])
def test_the_interval_of_the_calibration_error_holds_the_true_one(overconfident):
    random, tests, holding = np.random.default_rng(0), 60, 0

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        true = np.exp(3 * random.normal(size=(count, 5)))
        true /= true.sum(axis=1, keepdims=True)
        labels = (true.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
        return labels, true**overconfident / (true**overconfident).sum(axis=1, keepdims=True)

    labels, probabilities = draw(200_000)
    table = calibration(labels, probabilities)
    truth = ((table["accuracy"] - table["confidence"]).abs() * table["count"]).sum() / len(labels)
    for _ in range(tests):
        _, low, high = _losses(*draw(360))["calibration_error"]
        holding += low <= truth <= high
    assert holding / tests > 0.88


@pytest.mark.parametrize("mistakes", [0, 1, 10])
def test_weighted_recall_is_accuracy_and_no_interval_is_empty(mistakes):
    labels = np.arange(60) % 3
    predicted = np.where(np.arange(60) < mistakes, (labels + 1) % 3, labels)
    found = confidence_intervals(labels, np.eye(3)[predicted] * 0.7 + 0.1)
    assert list(found.loc["recall"]) == pytest.approx(list(found.loc["accuracy"]))
    scores = found.drop(index=["loss", "calibration_error"])
    assert (scores["low"] < scores["value"]).all() and (scores["value"] <= scores["high"]).all()


def test_an_interval_holds_its_value_where_classes_have_few_images():
    """A bootstrap sample lacks a third of the images: of two of a class often both, and the scores fall."""
    random, classes = np.random.default_rng(0), 100
    labels = np.repeat(np.arange(classes), 2)
    predicted = np.where(random.random(len(labels)) < 0.8, labels, random.integers(0, classes, len(labels)))
    probabilities = np.full((len(labels), classes), 0.001)
    probabilities[np.arange(len(labels)), predicted] = 1 - 0.001 * (classes - 1)
    values, found = classification(labels, probabilities), confidence_intervals(labels, probabilities)
    for name in ("precision", "macro_precision", "macro_recall", "macro_f1_score", "loss"):
        assert found.at[name, "low"] < values[name] < found.at[name, "high"], name
    for name in ("calibration_error", "top_2_accuracy", "top_5_accuracy"):
        assert found.at[name, "low"] < found.at[name, "value"] < found.at[name, "high"], name


def test_calibration_error_and_top_k_worked_out_by_hand():
    labels = np.array([0, 0, 0])
    probabilities = np.array([[0.95, 0.03, 0.02], [0.02, 0.95, 0.03], [0.55, 0.05, 0.4]])
    found = confidence_intervals(labels, probabilities)
    # Two of confidence 0.95, half of them right; one of 0.55, right.
    assert found.at["calibration_error", "value"] == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.45)
    assert found.at["top_2_accuracy", "value"] == pytest.approx(2 / 3) and "top_5_accuracy" not in found.index
    assert list(calibration(labels, probabilities)["count"]) == [1, 2]
