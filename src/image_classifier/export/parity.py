"""Is an exported format still the model that was evaluated?"""

from pathlib import Path

import numpy as np
import pandas as pd

from image_classifier.core import tables
from image_classifier.core.config import Export
from image_classifier.core.errors import UserError
from image_classifier.export.formats import FILES
from image_classifier.images.shards import ShardReader

FORMATS = {"onnx": "the ONNX model", "hf": "transformers' pipeline"}


def parity(labels: np.ndarray, torch_probabilities: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far another runtime's probabilities [N, classes] are from torch's on the same images.

    The relative error is that of each image's vector of probabilities; the largest counts.
    """
    difference = probabilities.astype(np.float64) - torch_probabilities
    guess, torch_guess = probabilities.argmax(axis=1), torch_probabilities.argmax(axis=1)
    values = {
        "agreement": (guess == torch_guess).mean(),
        "accuracy": (guess == labels).mean(),
        "accuracy_difference": (guess == labels).mean() - (torch_guess == labels).mean(),
        "max_probability_difference": np.abs(difference).max(),
        "max_relative_error": (np.linalg.norm(difference, axis=1) / np.linalg.norm(torch_probabilities, axis=1)).max(),
    }
    return {name: float(value) for name, value in values.items()}


def sample(count: int) -> np.ndarray:
    """Which of `count` test images the formats are compared on: all, or always the same `tables.COMPARED` of more."""
    return np.sort(np.random.default_rng(0).permutation(count)[: tables.COMPARED])


def near_best(probabilities: np.ndarray, classes: np.ndarray, error: float) -> np.ndarray:
    """Whether each image's class in `classes` int64 [N] is the best, or as good as far as the error goes: bool [N].

    `error` is relative to the image's vector p of `probabilities` [N, classes], of which two can be off against each
    other by at most sqrt(2) * error * |p|.
    """
    own = np.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]
    return probabilities.max(axis=1) - own <= np.sqrt(2) * error * np.linalg.norm(probabilities, axis=1)


def check_evaluated(predictions: Path, test: ShardReader, rows: np.ndarray, expected: np.ndarray, error: float) -> None:
    """Refuse a network that does not say of the test images what evaluate, perhaps on another device, wrote down.

    `expected` are its probabilities [N, classes] of the images with the numbers `rows`, and `error` what two devices
    may differ by, relative.

    Raises UserError: the metrics are of another checkpoint, or of other images.
    """
    written = tables.read_predictions(predictions)
    number = {name: label for label, name in enumerate(test.class_names)}
    classes = written["predicted"].map(number).fillna(-1).to_numpy(dtype=np.int64)
    same_images = list(written["image"]) == test.hashes and (classes >= 0).all()
    if not same_images or not near_best(expected, classes[rows], error).all():
        raise UserError(f"{predictions} is not of this checkpoint and test images: run `dvc repro -f -s evaluate`")


def gate(
    folder: Path, labels: np.ndarray, expected: np.ndarray, found: dict[str, np.ndarray], limits: Export
) -> pd.DataFrame:
    """Compare every format in `folder` with torch, whose probabilities are `expected`: one row a format.

    A float format has to be the model that was evaluated. An int8 file is another one: it is removed, and its row
    stays, unless its accuracy is within the limit.

    Raises UserError: agreement or relative error of a float format is outside the limits.
    """
    rows: dict[str, dict[str, float | bool]] = {}
    for form, probabilities in found.items():
        values = parity(labels, expected, probabilities)
        agreement, error = values["agreement"], values["max_relative_error"]
        as_good = near_best(expected, probabilities.argmax(axis=1), limits.max_relative_error).mean()
        fault = ""
        if form != "int8" and as_good < limits.min_agreement:
            fault = f"agrees with torch on {agreement:.4%}, less than export.min_agreement = {limits.min_agreement}"
        elif form != "int8" and not error <= limits.max_relative_error:
            fault = f"is off by {error:.2g}, more than export.max_relative_error = {limits.max_relative_error}"
        if fault:
            raise UserError(f"on the test images {FORMATS[form]} {fault}: nothing was exported")
        size = (folder / FILES[form]).stat().st_size if form in FILES else np.nan
        rows[form] = values | {"bytes": size, "ships": True}
    if "int8" in rows:
        lost = round(-rows["int8"]["accuracy_difference"] * len(labels))  # images
        rows["int8"]["ships"] = lost <= limits.max_int8_loss * len(labels) * (1 + 1e-9)  # at the limit too
        if not rows["int8"]["ships"]:
            (folder / FILES["int8"]).unlink()
    return pd.DataFrame(rows).T.rename_axis("format")


def headline(table: pd.DataFrame) -> dict[str, float]:
    """The figures of `gate` for metrics.json, of the formats that ship."""
    figures = {f"{form}_agreement": float(table.at[form, "agreement"]) for form in FORMATS}
    ships = "int8" in table.index and table.at["int8", "ships"]
    return figures | ({"int8_accuracy": float(table.at["int8", "accuracy"])} if ships else {})


def in_words(table: pd.DataFrame, count: int) -> str:
    """What `gate` found on `count` images, in a line."""
    agreement = table.loc[[*FORMATS], "agreement"].min()
    words = f"ONNX and pipeline agree with torch on {agreement:.2%} of {count} test images"
    if "int8" in table.index:
        fate = "ships" if table.at["int8", "ships"] else "was LEFT OUT"
        words += f"; int8 {fate}, {table.at['int8', 'accuracy_difference']:+.4f} of accuracy"
    return words
