"""The paired comparison of two models."""

import pandas as pd
import pytest

from image_classifier.commands import compare
from image_classifier.core.errors import UserError
from tests.helpers.project import command

PREDICTIONS = "metrics/evaluate/predictions.csv"


def test_a_gain_is_counted_image_by_image(project, change, capsys):
    before = pd.read_csv(PREDICTIONS, dtype=str)
    wrong = before.index[before["actual"] != before["predicted"]]
    after = before.copy()
    after.loc[wrong[:12], "predicted"] = after.loc[wrong[:12], "actual"]
    right = before.index[before["actual"] == before["predicted"]][:2]
    after.loc[right, "predicted"] = [str((int(label) + 1) % 10) for label in after.loc[right, "actual"]]
    after.sample(frac=1, random_state=0).to_csv(PREDICTIONS, index=False)  # in another order
    change({"training": {"learning_rate": 0.02}})
    compare.main("HEAD", "workspace")
    text = capsys.readouterr().out
    assert "12 that workspace alone gets right, 2 that HEAD alone does" in text
    assert f"{10 / 360:+.4f}" in text
    assert "p = 0.013: significant at the 5% level" in text  # 2 * (1 + 14 + 91) / 2 ** 14
    assert "param       training.learning_rate: 0.01 -> 0.02" in text
    assert len(text.splitlines()) <= 16


def test_a_model_is_no_better_than_itself(project, capsys):
    compare.main("HEAD", "workspace")
    text = capsys.readouterr().out
    assert "p = 1: not significant" in text and "recall" not in text and "param" not in text


def test_other_test_images_are_refused(project):
    rows = pd.read_csv(PREDICTIONS, dtype=str)
    rows[:100].to_csv(PREDICTIONS, index=False)
    with pytest.raises(UserError, match="HEAD was tested on 360 images and workspace on 100, 100 of them the same"):
        compare.main("HEAD", "workspace")


@pytest.mark.parametrize("name", ["no-such-experiment", "HEAD~99"])
def test_what_cannot_be_read_is_one_line(project, name):
    result = command(project, "python", "-m", "image_classifier", "compare", "HEAD", name, ok=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {name}: ") and len(result.stderr.splitlines()) == 1


def test_the_interval_of_a_difference():
    low, high = compare.interval(10, 10, 1000)
    assert low == pytest.approx(-high) and 0.008 < high < 0.010  # 1.96 * sqrt(20) / 1000, and a little
    low, high = compare.interval(0, 30, 300)
    assert 0.06 < low < 0.1 < high < 0.14
    assert compare.interval(0, 2, 2)[1] == 1
