"""Classify picture files with the exported ONNX model."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from image_classifier import export, preprocess
from image_classifier.errors import UserError

MODEL = "models/export/model.onnx"


class Predictor:
    """An exported model with its class names and its way to resize, as its file holds them."""

    def __init__(self, path: str | Path = MODEL):
        self.session = export.session(path)
        facts = self.session.get_modelmeta().custom_metadata_map
        if not {"class_names", "resize"} <= facts.keys():
            raise UserError(f"{path} holds no class names: it was not made by `dvc repro export`")
        self.class_names: list[str] = json.loads(facts["class_names"])
        self.resize = preprocess.Resize(self.session.get_inputs()[0].shape[1], facts["resize"])

    def __call__(self, path: Path, top_k: int) -> list[tuple[str, float]]:
        """The `top_k` most probable (class, probability) of one picture, best first.

        Raises UnreadableImage: the file is no picture.
        """
        picture = self.resize(preprocess.decode(path.read_bytes()))
        (probabilities,) = self.session.run(None, {"image": picture[None].numpy()})
        order = np.argsort(-probabilities[0], kind="stable")[:top_k]
        return [(self.class_names[index], float(probabilities[0, index])) for index in order]


def main(paths: list[str], top_k: int, as_json: bool) -> int:
    """Print what each picture shows; return 1 if any could not be read."""
    predictor = Predictor()
    failed, rows = 0, []
    for path in _pictures(paths):
        try:
            best = predictor(path, top_k)
        except (preprocess.UnreadableImage, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = 1
            continue
        if as_json:
            rows.append({"path": str(path), "predictions": [{"class": c, "confidence": p} for c, p in best]})
        else:
            print(f"{path}  " + "  ".join(f"{name} {confidence:.1%}" for name, confidence in best))
    if as_json:
        print(json.dumps(rows, indent=2))
    return failed


def _pictures(paths: list[str]) -> Iterator[Path]:
    """The files named, and those below the folders named whose suffix is a picture's, sorted."""
    suffixes = Image.registered_extensions()
    for path in map(Path, paths):
        if path.is_dir():
            found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in suffixes and p.is_file()]
            if not found:
                raise UserError(f"{path} holds no pictures: name a picture, or a folder with some")
            yield from found
        else:
            yield path
