"""The files that people read: tables of an evaluation, and the report of a whole run."""

from pathlib import Path

import numpy as np
import pandas as pd

from image_classifier import files, metrics
from image_classifier.config import Config

# What was published for this recipe, of the test split.
PUBLISHED = {"accuracy": 0.9020, "precision": 0.9033, "recall": 0.9020, "f1_score": 0.9019}
PUBLISHED_NOTE = (
    "The published code cannot run (its model code was never committed), and its test figures were measured on "
    "1,000 pictures, not the 5,000 it states: the 95 % interval of its accuracy is 0.882 to 0.919."
)


def write_evaluation(
    folder: Path, labels: np.ndarray, probabilities: np.ndarray, hashes: list[str], class_names: list[str]
) -> dict[str, float]:
    """Write metrics.json, per_class.csv and predictions.csv; return the metrics.

    `labels` are int64 [N], `probabilities` float [N, classes], `hashes` each picture's SHA-256 in hex.
    """
    folder.mkdir()
    values = metrics.classification(labels, probabilities)
    files.write_json(folder / "metrics.json", values | {"num_images": len(labels), "num_classes": len(class_names)})
    pd.DataFrame(metrics.per_class(labels, probabilities, class_names)).to_csv(folder / "per_class.csv", index=False)
    names, predicted = np.array(class_names), probabilities.argmax(axis=1)
    predictions = {
        "image": hashes,
        "actual": names[labels],
        "predicted": names[predicted],
        "confidence": probabilities.max(axis=1),
    }
    pd.DataFrame(predictions).to_csv(folder / "predictions.csv", index=False, float_format="%.6f")
    return values


def write_report(path: Path, config: Config, train: Path, evaluate: Path) -> None:
    """Write what was trained on what, every epoch, and train against val against test, as Markdown.

    The files of `train` (DVCLive's folder) and `evaluate` are the only source of figures.
    """
    best = files.read_json(train / "metrics.json", "run `dvc repro train`")
    test = files.read_json(evaluate / "metrics.json", "run `dvc repro evaluate`")
    text = [
        "# Report",
        f"{config.model.name} ({'pretrained' if config.model.pretrained else 'from scratch'}) on {config.data.source}, "
        f"{config.data.image_size} px, {test['num_classes']} classes, {test['num_images']} test pictures; "
        f"{config.training.optimizer}, learning rate {config.training.learning_rate:g}, "
        f"batch {config.training.batch_size}, {config.training.num_epochs} epochs.",
        "## Every epoch",
        _markdown(_epochs(train)),
        f"The checkpoint is that of epoch {best['best_epoch'] + 1}, the best on val.",
        "## Train, val and test",
        _markdown(_splits(best, test, _is_published(config))),
        "Precision, recall and F1 are averages weighted by the size of the class. The figures of train are running "
        "averages over the epoch, while the weights changed.",
    ]
    if _is_published(config):
        text.append(PUBLISHED_NOTE)
    with files.atomic(path) as unfinished:
        unfinished.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def _epochs(train: Path) -> pd.DataFrame:
    columns = ["train_loss", "train_accuracy"]
    columns += [f"val_{name}" for name in ("loss", "accuracy", "precision", "recall", "f1_score")]
    series = {name: pd.read_csv(train / f"plots/metrics/{name}.tsv", sep="\t")[name] for name in columns}
    table = pd.DataFrame(series).rename(columns=lambda name: name.replace("_", " "))
    return table.set_axis(table.index + 1).rename_axis("epoch")


def _splits(best: dict[str, float], test: dict[str, float], published: bool) -> pd.DataFrame:
    names = ["accuracy", "precision", "recall", "f1_score", "loss"]
    columns = {split: {name: best.get(f"{split}_{name}") for name in names} for split in ("train", "val")}
    table = pd.DataFrame(columns | {"test": {name: test[name] for name in names}}, dtype=float)
    table["train - test"] = table["train"] - table["test"]
    if published:
        table["test, published"] = pd.Series(PUBLISHED)
    return table.rename(index=lambda name: name.replace("_", " "))


def _is_published(config: Config) -> bool:
    """Whether the recipe is the one that was published, wherever its pictures and weights lie."""
    data, model, training = config.data, config.model, config.training
    chosen = (data.image_size, data.val_from, data.subset_size, model.pretrained)
    chosen += (training.num_epochs, training.batch_size, training.learning_rate)
    same = chosen == (160, "test", 10_000, True, 3, 128, 1e-4)
    return same and data.source.endswith("cifar10") and model.name.endswith("mobilevit-small")


def _markdown(table: pd.DataFrame) -> str:
    cells = table.map(lambda value: "" if pd.isna(value) else f"{value:.4f}")
    rows = [[name, *row] for name, row in zip(table.index.astype(str), cells.values, strict=True)]
    header = [table.index.name or "", *table.columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
