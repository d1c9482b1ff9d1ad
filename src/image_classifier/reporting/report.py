"""The report of a whole run: from its metrics, its params and the index of its training data."""

from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML, YAMLError

from image_classifier.core import files, tables
from image_classifier.core.config import Config
from image_classifier.core.errors import UserError, first_line
from image_classifier.core.markdown import ROWS, render, to_markdown

TEMPLATE = Path(__file__).with_name("report.md")
SCORES = ["loss", "accuracy", "precision", "recall", "f1_score"]
CONFUSED = 10  # pairs of classes that are listed
# Keys of a recipe that say where and how it runs, or where its inputs lie, not what it does.
NO_PART = {
    "data": {"source", "revision", "on_duplicate"},
    "model": {"name", "revision"},
    "training": {"precision", "use_compile", "augmentation"},
}
NAMES = (("data", "source"), ("model", "name"))  # of which the last part counts, wherever they lie


def write_report(path: Path, config: Config, metrics: Path, index: Path, weights: str, recipes: Path) -> None:
    """Write report.md for the model whose weights have the SHA-256 `weights`.

    `metrics` is the folder with those of all stages, `index` that of the training shards, with val's in the folder
    beside it. The figures stand beside those that one of the `recipes` says were published for it, where the params are
    that recipe's.

    Raises UserError: an input is missing or damaged.
    """
    train = files.read_json(index, "run `dvc repro prepare`")
    best_epoch = tables.read_training(metrics / "train")["best_epoch"]
    predictions = tables.read_predictions(metrics / "evaluate/predictions.csv")
    intervals = tables.read_intervals(metrics / "evaluate/intervals.csv")
    parity = tables.read_parity(metrics / "export/parity.csv")
    series = epochs(metrics / "train")
    published = published_figures(config, recipes)
    facts = {
        **config.model_dump(),
        "accuracy": intervals.loc["accuracy"],
        "best_epoch": best_epoch + 1,
        "compared": min(len(predictions), tables.COMPARED),
        "classes": to_markdown(tables.read_classes(metrics / "evaluate/per_class.csv"), worst="f1_score"),
        "confused": _confused(predictions),
        "epochs": to_markdown(series),
        "int8_ships": "int8" in parity.index and parity.at["int8", "ships"],
        "images": train["count"],
        "intervals": to_markdown(intervals),
        "num_classes": len(train["class_names"]),
        "num_images": len(predictions),
        "parity": to_markdown(_parity(parity)),
        "params": config.as_yaml(),
        "published": published.get("note", ""),
        "sha256": weights,
        "near": tables.read_near_duplicates(index.parent.parent),
        "rows": ROWS,
        "shared": tables.read_shared(index.parent.parent) if config.data.on_duplicate == "count" else {},
        "splits": to_markdown(_splits(series.loc[best_epoch + 1], intervals["value"], published)),
    }
    with files.atomic(path) as unfinished:
        unfinished.write_text(render(TEMPLATE, facts), encoding="utf-8")


def description(path: Path) -> str:
    """What stands in a report before its first image: the paragraphs and the table of scores."""
    return path.read_text(encoding="utf-8").partition("\n")[2].partition("\n## Every epoch")[0].strip()


def epochs(train: Path) -> pd.DataFrame:
    """One row an epoch, from 1: the image size, and the scores of train and val in DVCLive's folder."""
    columns = ["image_size", *(f"{split}_{name}" for split in ("train", "val") for name in SCORES)]
    series = tables.read_series(train)[columns]
    return series.set_axis(series.index + 1).rename_axis("epoch")


def published_figures(config: Config, recipes: Path) -> dict[str, Any]:
    """The `published` block of the recipe that these params are, wherever its images and weights lie; {} if none."""
    for path in sorted(recipes.glob("*.yaml")):
        try:
            recipe = YAML(typ="safe", pure=True).load(path) or {}
        except YAMLError as error:
            raise UserError(f"{path} is not valid YAML: {first_line(error)}") from None
        published = recipe.pop("published", None)
        if published and _follows(config, recipe):
            return published
    return {}


def _follows(config: Config, recipe: dict[str, dict[str, Any]]) -> bool:
    """Whether the params are those of a recipe, and its dataset and its model have the same names."""
    params = config.model_dump()
    for section, no_part in NO_PART.items():
        sets = recipe.get(section, {})
        if any(params[section].get(key) != value for key, value in sets.items() if key not in no_part):
            return False
    names = [(params[section][key], recipe.get(section, {}).get(key, "")) for section, key in NAMES]
    return all(Path(ours).name == Path(theirs).name for ours, theirs in names)


def _confused(predictions: pd.DataFrame) -> str:
    """The pairs of classes that are mistaken for each other most often, as Markdown; empty if there is none."""
    wrong = predictions[predictions["actual"] != predictions["predicted"]]
    pairs = wrong.value_counts(["actual", "predicted"]).reset_index()
    pairs = pairs.sort_values(["count", "actual", "predicted"], ascending=[False, True, True])
    return "" if wrong.empty else to_markdown(pairs[:CONFUSED].set_index("actual"))


def _splits(best: pd.Series, test: pd.Series, published: dict[str, Any]) -> pd.DataFrame:
    """One row a score: train, val, test, how far train and test are apart, and what was published."""
    columns = {split: {name: best[f"{split}_{name}"] for name in SCORES} for split in ("train", "val")}
    table = pd.DataFrame(columns | {"test": {name: test[name] for name in SCORES}}, dtype=float)
    table["train - test"] = table["train"] - table["test"]
    if published:
        table["test, published"] = pd.Series({name: published[name] for name in SCORES if name in published})
    return table


def _parity(parity: pd.DataFrame) -> pd.DataFrame:
    """export's table, its numbers short."""
    table = parity.drop(columns="ships").astype(object).map(lambda value: f"{value:,.4g}")
    table["bytes"] = ["" if pd.isna(size) else f"{size:,.0f}" for size in parity["bytes"]]
    return table
