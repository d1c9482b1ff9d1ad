import numpy as np
import pytest
from scipy.stats import binom

from image_classifier.evaluation.intervals import (
    _bootstrapped,
    calibration,
    confidence_intervals,
    per_class,
    sample_averages,
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


def test_the_bootstrap_agrees_with_theory_on_weighted_recall():
    """Weighted recall is accuracy, whose bootstrap is binomial: percentiles are known."""
    labels, right = np.arange(400) % 4, np.arange(400) % 5 > 0
    predicted = np.where(right, labels, (labels + 1) % 4)
    found = _bootstrapped(labels, np.eye(4)[predicted] * 0.9 + 0.025)
    low, high = binom.ppf([0.025, 0.975], 400, 0.8) / 400
    assert (found.at["recall", "low"], found.at["recall", "high"]) == pytest.approx((low, high), abs=0.006)


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
