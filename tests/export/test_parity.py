"""A predicted class may differ only where the two best are a tie, as far as the expected error goes."""

import numpy as np
import pandas as pd
import pytest

from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.export import parity
from image_classifier.images.shards import ShardReader

ERROR = 1e-3
LIMITS = config.load().export.model_copy(update={"min_agreement": 1.0, "max_relative_error": ERROR})


def unsure(count: int, seed: int) -> np.ndarray:
    """Probabilities of a model that is barely better than chance, float32 [count, 10]."""
    logits = np.random.default_rng(seed).normal(scale=0.2, size=(count, 10))
    values = np.exp(logits)
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def disturbed(probabilities: np.ndarray, seed: int) -> np.ndarray:
    """The same, each image's vector off by just less than the error in a random direction."""
    noise = np.random.default_rng(seed).normal(size=probabilities.shape)
    noise *= (
        0.99
        * ERROR
        * np.linalg.norm(probabilities, axis=1, keepdims=True)
        / np.linalg.norm(noise, axis=1, keepdims=True)
    )
    return (probabilities + noise).astype(np.float32)


def test_more_than_ten_thousand_images_are_sampled():
    assert np.array_equal(parity.sample(360), np.arange(360))
    rows = parity.sample(50_000)
    assert len(np.unique(rows)) == len(rows) == 10_000 and rows[-1] < 50_000
    assert np.array_equal(rows, parity.sample(50_000))


@pytest.mark.parametrize("seed", range(5))
def test_near_ties_are_all_that_an_error_can_flip(seed):
    exact = unsure(5_000, seed)
    found = disturbed(exact, seed + 100)
    flipped = exact.argmax(axis=1) != found.argmax(axis=1)
    assert flipped.sum() > 5  # more than a limit of one in a thousand would let pass
    assert parity.near_best(exact, found.argmax(axis=1), ERROR).all()
    assert not parity.near_best(exact, exact.argmin(axis=1), ERROR).any()


def test_an_unsure_model_is_exported_and_a_wrong_one_is_not(tmp_path):
    exact = unsure(5_000, 0)
    labels, found = exact.argmax(axis=1), disturbed(exact, 1)
    (tmp_path / "model.onnx").touch()
    table = parity.gate(tmp_path, labels, exact, {"onnx": found, "hf": exact}, LIMITS)
    assert table.at["onnx", "agreement"] < 0.999  # said as it is
    wrong = exact.copy()
    second, first = np.sort(exact, axis=1)[:, -2:].T
    row = (first - second).argmax()  # where nothing is close
    wrong[row] = wrong[row][::-1]
    with pytest.raises(UserError, match="the ONNX model (agrees with torch on|is off by)"):
        parity.gate(tmp_path, labels, exact, {"onnx": wrong, "hf": exact}, LIMITS)


def test_what_evaluate_wrote_may_differ_in_near_ties_alone(project):
    test = ShardReader("data/shards/test")
    exact = unsure(len(test), 3)
    guesses = disturbed(exact, 4).argmax(axis=1)
    sure = exact.copy()
    sure[0] = np.eye(10, dtype=np.float32)[guesses[0]]
    names = np.array(test.class_names)
    table = {"image": test.hashes, "actual": names[test.labels], "predicted": names[guesses], "confidence": 1.0}
    pd.DataFrame(table).to_csv("predictions.csv", index=False)
    parity.check_evaluated("predictions.csv", test, np.arange(len(test)), sure, ERROR)
    sure[0] = np.eye(10, dtype=np.float32)[(guesses[0] + 1) % 10]
    with pytest.raises(UserError, match="is not of this checkpoint"):
        parity.check_evaluated("predictions.csv", test, np.arange(len(test)), sure, ERROR)
