"""The paired comparison of two models."""

from pathlib import Path

import numpy as np
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
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(lock.replace("learning_rate: 0.01\n", "learning_rate: 0.02\n"))
    change({"training": {"num_epochs": 3}})  # not run yet, so that it made none of the predictions
    compare.main("HEAD", "workspace")
    text = capsys.readouterr().out
    assert "12 that workspace alone gets right, 2 that HEAD alone does" in text
    assert f"{10 / 360:+.4f}" in text
    assert "p = 0.013: significant at the 5% level" in text  # 2 * (1 + 14 + 91) / 2 ** 14
    assert "param       training.learning_rate: 0.01 -> 0.02" in text and text.count("param ") == 1
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


def drawn(random: np.random.Generator, images: int, seeds: int, gain: float, between: float) -> np.ndarray:
    """Gains of models whose true mean difference is `gain`, with standard deviation `between` over the seeds."""
    chance = gain + between * random.standard_normal(seeds) + 0.1 * random.standard_normal((images, 1))
    return np.sign(chance) * (random.random((images, seeds)) < abs(chance))


@pytest.mark.parametrize("between", [0.0, 0.005, 0.03])
def test_nineteen_of_twenty_intervals_over_seeds_hold_the_difference(between):
    random, held, tried = np.random.default_rng(0), 0, 400
    for _ in range(tried):
        low, high = compare.interval_over_seeds(drawn(random, 500, 4, 0.02, between))
        held += low <= 0.02 <= high
    assert 0.92 <= held / tried <= 0.99


def test_the_interval_over_seeds_is_that_of_known_cases():
    alike = np.repeat(drawn(np.random.default_rng(1), 1000, 1, 0.1, 0.0), 5, axis=1)
    low, high = compare.interval_over_seeds(alike)  # five times the same model tell no more than one
    assert high - low == pytest.approx(2 * 1.96 * alike[:, 0].std(ddof=1) / 1000**0.5, rel=1e-3)
    apart = np.tile([0.0, 0.01], (1000, 1))  # all the spread is between two seeds: Student's t with one degree
    low, high = compare.interval_over_seeds(apart)
    assert (low, high) == pytest.approx((0.005 - 12.706 * 0.005, 0.005 + 12.706 * 0.005), rel=1e-3)


def test_seeds_that_tie_are_not_sure_of_it():
    gains = np.zeros((360, 2))
    gains[0, 0] = gains[1, 1] = 1  # one image each, another one
    low, high = compare.interval_over_seeds(gains)
    assert low < 0 < gains.mean() < high


def locked(params: dict, data: str) -> dict:
    """The stages of a dvc.lock."""
    stage = {"params": {"params.yaml": params}, "deps": [{"path": "data/raw", "md5": data}], "outs": []}
    return dict.fromkeys(("prepare", "train", "evaluate"), stage)


@pytest.fixture
def seeded(monkeypatch) -> dict[str, dict]:
    """Params by model, for models that were trained with several seeds: `HEAD` and `workspace` stand for all."""
    params = {
        f"{model}-{seed}": {"seed": seed, "lr": rate} for model, rate in (("a", 1), ("b", 2)) for seed in range(3)
    }
    read = compare._predictions
    monkeypatch.setattr(compare, "_stages", lambda model: locked(params[model], data="d" + model[0]))
    monkeypatch.setattr(compare, "_predictions", lambda model: read("HEAD" if model.startswith("a") else "workspace"))
    return params


def test_several_seeds_are_paired(project, seeded, monkeypatch, capsys):
    """Each model of `b` gets ten more images right, then only two of the three do."""
    rows = pd.read_csv(PREDICTIONS, dtype=str)
    wrong = rows.index[rows["actual"] != rows["predicted"]]
    rows.loc[wrong[:10], "predicted"] = rows.loc[wrong[:10], "actual"]
    rows.to_csv(PREDICTIONS, index=False)
    compare.main("a-0,a-1,a-2", "b-0, b-1, b-2")
    text, gain = capsys.readouterr().out, 10 / len(rows)
    assert f"{gain:+.4f}, 95% interval" in text and f"pairs       {gain:+.4f}, {gain:+.4f}, {gain:+.4f}" in text
    assert "verdict     significant at the 5% level" in text and "lr: 1 -> 2" in text and "McNemar" not in text
    assert "note        the models were made from different data or code: data/raw" in text and "seed: " not in text
    read = compare._predictions
    monkeypatch.setattr(compare, "_predictions", lambda model: read("a-2" if model == "b-2" else model))
    compare.main("a-0,a-1,a-2", "b-0,b-1,b-2")
    text = capsys.readouterr().out
    assert f"{2 * gain / 3:+.4f}, 95% interval" in text
    assert f"pairs       {gain:+.4f}, {gain:+.4f}, +0.0000" in text and "not significant at the 5% level" in text


def test_models_that_differ_in_more_than_the_seed_are_refused(project, seeded):
    for a, b, message in (
        ("a-0,a-1", "b-0", "2 models against 1"),
        ("a-0,a-1,", "b-0,b-1,", "a name is empty"),
        ("a-0,a-0", "b-0,b-1", "a-0, a-0: a seed comes twice"),
        ("a-0,b-1", "b-0,b-1", "a-0 and b-1 differ in lr: only the seed may differ"),
    ):
        with pytest.raises(UserError, match=message):
            compare.main(a, b)
