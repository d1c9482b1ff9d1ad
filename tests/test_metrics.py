import numpy as np
import pytest

from image_classifier import metrics

LABELS = np.array([0, 0, 0, 1])
PROBABILITIES = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.4, 0.6, 0], [0.3, 0.7, 0]])


def test_numbers_worked_out_by_hand():
    values = metrics.classification(LABELS, PROBABILITIES)
    assert values["accuracy"] == 3 / 4
    assert values["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean())
    # Class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1.
    assert values["precision"] == pytest.approx((3 * 1 + 1 * 0.5) / 4)
    assert values["recall"] == pytest.approx((3 * 2 / 3 + 1) / 4)
    assert values["macro_f1_score"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_per_class_has_a_row_for_a_class_that_never_occurs():
    rows = metrics.per_class(LABELS, PROBABILITIES, ["cat", "dog", "emu"])
    assert [row["class"] for row in rows] == ["cat", "dog", "emu"]
    assert [row["support"] for row in rows] == [3, 1, 0]
    assert rows[2]["f1_score"] == 0


def test_a_probability_of_zero_gives_a_finite_loss():
    assert np.isfinite(metrics.classification(np.array([2]), np.array([[1.0, 0.0, 0.0]]))["loss"])
