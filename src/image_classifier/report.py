"""The files that people read: tables of an evaluation, the report of a whole run, the model's card."""

import html
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from image_classifier import files, metrics, pictures
from image_classifier.config import Config
from image_classifier.errors import printable
from image_classifier.shards import ShardReader

# What was published for this recipe, of the test split.
PUBLISHED = {"accuracy": 0.9020, "precision": 0.9033, "recall": 0.9020, "f1_score": 0.9019}
PUBLISHED_NOTE = (
    "The published code cannot run (its model code was never committed), and its test figures were measured on "
    "1,000 pictures, not the 5,000 it states: the 95 % interval of its accuracy is {:.3f} to {:.3f}."
).format(*metrics.wilson(902, 1000))
# Whose pretrained weights carry Apple's sample-code licence.
APPLE = {f"mobilevit-{size}" for size in ("small", "x-small", "xx-small")}
SCORES = ["loss", "accuracy", "precision", "recall", "f1_score"]
ROWS = 50  # of a table, at most


def write_evaluation(
    folder: Path, labels: np.ndarray, probabilities: np.ndarray, test: ShardReader
) -> dict[str, float]:
    """Write metrics.json, the tables and galleries of what the network said of `test`; return the metrics.

    `labels` are int64 [N], `probabilities` float [N, classes].
    """
    folder.mkdir()
    values = metrics.classification(labels, probabilities) | metrics.evidence(labels, probabilities)
    counts = {"num_images": len(labels), "num_classes": len(test.class_names)}
    files.write_json(folder / "metrics.json", values | counts)
    metrics.per_class(labels, probabilities, test.class_names).to_csv(folder / "per_class.csv", index=False)
    bins = metrics.calibration(labels, probabilities)
    bins.to_csv(folder / "calibration.csv", index=False, float_format="%.6f")
    names, predicted = np.array(test.class_names), probabilities.argmax(axis=1)
    predictions = pd.DataFrame(
        {
            "image": test.hashes,
            "actual": names[labels],
            "predicted": names[predicted],
            "confidence": probabilities.max(axis=1),
        }
    )
    predictions.to_csv(folder / "predictions.csv", index=False, float_format="%.6f")
    wrong = predictions[labels != predicted].sort_values("confidence", ascending=False, kind="stable")
    sample = predictions.sample(min(pictures.SHOWN, len(labels)), random_state=0)
    pictures.gallery(folder / "mistakes.png", wrong[: pictures.SHOWN], test)
    pictures.gallery(folder / "random.png", sample, test)
    pictures.confusion(folder / "confusion.png", predictions, test.class_names)
    pictures.reliability(folder / "reliability.png", bins)
    return values


def facts(config: Config, exported: dict[str, float], weights: str, folder: Path, index: Path) -> dict[str, Any]:
    """What the report and the card say: the files in `folder` (metrics/) are the only source of figures.

    `exported` are the metrics of export, `weights` the SHA-256 of the weights, `index` that of the training shards.
    """
    train = files.read_json(index, "run `dvc repro prepare`")
    best = files.read_json(folder / "train/metrics.json", "run `dvc repro train`")
    test = files.read_json(folder / "evaluate/metrics.json", "run `dvc repro evaluate`")
    classes = pd.read_csv(
        folder / "evaluate/per_class.csv", index_col="class", dtype={"class": str}, keep_default_na=False
    )
    predictions = pd.read_csv(folder / "evaluate/predictions.csv", dtype=str, keep_default_na=False)
    wrong = predictions[predictions["actual"] != predictions["predicted"]]
    confused = (
        wrong.value_counts(["actual", "predicted"])
        .reset_index()
        .sort_values(["count", "actual", "predicted"], ascending=[False, True, True])
    )
    bounds = {
        name.removesuffix("_low"): (test[name], test[f"{name[:-3]}high"]) for name in test if name.endswith("_low")
    }
    intervals = pd.DataFrame({name: (test[name], *both) for name, both in bounds.items()}, ["value", "low", "high"]).T
    published = _is_published(config)
    return {
        **config.model_dump(),
        "apple": config.model.pretrained and Path(config.model.name).name in APPLE,
        "best": best,
        "class_names": ", ".join(map(_text, train["class_names"][:ROWS])) + ("" if len(classes) <= ROWS else ", ..."),
        "classes": _markdown(classes.nsmallest(ROWS, "f1_score") if len(classes) > ROWS else classes),
        "confused": "" if wrong.empty else _markdown(confused[:10].set_index("actual")),
        "epochs": _markdown(epochs(folder / "train")),
        "intervals": _markdown(intervals),
        "local": config.data.source == "digits" or config.data.source.startswith("data/raw/"),
        "hub_model": not config.model.name.startswith(("models/", "data/", ".", "/")),
        "shared": len(train["findings"]["duplicates"]) if config.data.on_duplicate == "count" else 0,
        "params": config.as_yaml(),
        "exported": exported,
        "parity": _markdown(_parity(exported)),
        "pictures": train["count"],
        "seed": config.seed,
        "published": PUBLISHED_NOTE if published else "",
        "sha256": weights,
        "splits": _markdown(_splits(best, test, published)),
        "test": test,
    }


def render(template: str, facts: dict[str, Any]) -> str:
    """A text of templates/ with these facts in it."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template(template).render(facts)


def epochs(train: Path) -> pd.DataFrame:
    """One row an epoch, from 1: every figure of train and val in DVCLive's folder."""
    columns = [f"{split}_{name}" for split in ("train", "val") for name in SCORES]
    series = {name: pd.read_csv(train / f"plots/metrics/{name}.tsv", sep="\t")[name] for name in columns}
    table = pd.DataFrame(series)
    return table.set_axis(table.index + 1).rename_axis("epoch")


def _splits(best: dict[str, float], test: dict[str, float], published: bool) -> pd.DataFrame:
    columns = {split: {name: best[f"{split}_{name}"] for name in SCORES} for split in ("train", "val")}
    table = pd.DataFrame(columns | {"test": {name: test[name] for name in SCORES}}, dtype=float)
    table["train - test"] = table["train"] - table["test"]
    if published:
        table["test, published"] = pd.Series(PUBLISHED)
    return table


def _parity(exported: dict[str, float]) -> pd.DataFrame:
    """One row a format: `exported` names its figures FORMAT_NAME."""
    table: dict[str, dict[str, str]] = {"onnx": {}, "hf": {}, "int8": {}}
    for name, value in exported.items():
        form, figure = name.split("_", 1)
        table[form][figure] = f"{value:,.4g}" if figure != "bytes" else f"{value:,}"
    return pd.DataFrame({form: figures for form, figures in table.items() if figures}).T


def _is_published(config: Config) -> bool:
    """Whether the recipe is the one that was published, wherever its pictures and weights lie."""
    data, model, training = config.data, config.model, config.training
    chosen = (data.image_size, data.resize, data.val_from, data.val_fraction, data.subset_size, data.normalization)
    chosen += (model.pretrained, model.freeze_backbone, model.dropout)
    chosen += (training.num_epochs, training.batch_size, training.resolution_schedule, training.fast_mode)
    chosen += (training.optimizer, training.learning_rate, training.weight_decay, training.scheduler)
    chosen += (training.warmup_fraction, training.label_smoothing, training.gradient_clip, training.batch_norm_images)
    same = chosen == (
        *(160, "stretch", "test", 0.5, 10_000, "imagenet"),
        *(True, False, None),
        *(3, 128, None, True),
        *("adam", 1e-4, 0.0, "none"),
        *(0.0, 0.0, None, None),
    )
    return same and Path(data.source).name == "cifar10" and Path(model.name).name == "mobilevit-small"


def _text(value: Any) -> str:
    """A value for a cell: in the name of a class a bar would end the cell, a line break the row, and a tag be one."""
    shown = "" if pd.isna(value) else f"{value:.4f}" if isinstance(value, float) else str(value)
    return html.escape(printable(shown), quote=False).replace("|", "\\|")


def _markdown(table: pd.DataFrame) -> str:
    table = table.rename_axis(table.index.name or "").reset_index()
    return table.astype(object).map(_text).to_markdown(index=False, disable_numparse=True)
