"""The model card: what a person who receives the model must know of it."""

from pathlib import Path

from image_classifier.core import files, tables
from image_classifier.core.config import Config
from image_classifier.core.markdown import ROWS, cell, render, to_markdown

TEMPLATE = Path(__file__).with_name("card.md")
# Pretrained weights that carry Apple's sample-code license, and those that `image-classifier weights` writes.
APPLE = {f"mobilevit-{size}" for size in ("small", "x-small", "xx-small")}
APACHE = {"efficientnet-lite0"}


def write_card(path: Path, config: Config, weights: str, metrics: Path, index: Path, timm: bool = False) -> None:
    """Write the card of the model whose weights have the SHA-256 `weights`.

    Its figures come from `metrics`, the folder of evaluate, and from `index`, that of the training shards; the text of
    the weights' license lies beside it, where they have one. `timm`: its network is one of timm's.
    """
    train = files.read_json(index, "run `dvc repro prepare`")
    names = train["class_names"]
    test = files.read_json(metrics / "metrics.json", "run `dvc repro evaluate`")
    data, model, classes = config.data, config.model, tables.read_classes(metrics / "per_class.csv")
    facts = {
        "data": data,
        "model": model,
        "apple": model.pretrained and Path(model.name).name in APPLE,
        "apache": model.pretrained and Path(model.name).name in APACHE and path.with_name("LICENSE").is_file(),
        "class_names": ", ".join(map(cell, names[:ROWS])) + ("" if len(names) <= ROWS else ", ..."),
        "num_classes": len(names),
        "classes": to_markdown(classes, worst="f1_score"),
        "num_images": classes["support"].sum(),
        "intervals": to_markdown(tables.read_intervals(metrics / "intervals.csv")),
        "local": data.source == "digits" or data.source.startswith("data/raw/"),
        "hub_model": model.revision is not None,
        "near": tables.read_near_duplicates(index.parent.parent),
        "rows": ROWS,
        "shared": tables.read_shared(index.parent.parent) if data.on_duplicate == "count" else {},
        "images": train["count"],
        "sha256": weights,
        "test": test,
        "timm": timm,
    }
    path.write_text(render(TEMPLATE, facts), encoding="utf-8")
