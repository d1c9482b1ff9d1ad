"""Classify image files with the exported model."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from image_classifier.core import files, runtime
from image_classifier.core.errors import UserError, first_line, printable
from image_classifier.export import formats
from image_classifier.export.formats import FILES
from image_classifier.images.resize import Resize
from image_classifier.preparation import decode
from image_classifier.preparation.decode import UnreadableImage

MODELS = Path("models/export")
BATCH_SIZE = 64  # images in memory at a time
# Methods of pandas' DataFrame, which is imported where it is needed, as transformers is: that takes longer than to
# classify an image.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("to_csv", {"index": False}),
    ".json": ("to_json", {"orient": "records", "indent": 2}),
    ".parquet": ("to_parquet", {"index": False}),
}


@dataclass
class Predictor:
    """An exported model: uint8 [N, size, size, 3] -> probabilities float32 [N, classes], and what belongs to it."""

    classify: Callable[[Tensor], np.ndarray]
    class_names: list[str]
    resize: Resize

    @classmethod
    def from_onnx(cls, path: Path = MODELS / FILES["onnx"]) -> "Predictor":
        """Open an ONNX file in ONNX Runtime. Raises UserError: it is missing, damaged, or not of `dvc repro export`."""
        session = formats.session(path)
        files.check_seal(path.parent, "run `dvc repro export` to make it again")
        facts = session.get_modelmeta().custom_metadata_map
        if not {"class_names", "resize", "background"} <= facts.keys():
            raise UserError(f"{path} holds no class names: it was not made by `dvc repro export`")
        resize = Resize(session.get_inputs()[0].shape[1], facts["resize"], facts["background"])
        names = json.loads(facts["class_names"])
        return cls(lambda images: session.run(None, {"image": images.numpy()})[0], names, resize)

    @classmethod
    def from_torch(cls, folder: Path = MODELS / "hf") -> "Predictor":
        """Open a Hugging Face folder in torch. Raises UserError: it is missing or damaged."""
        from image_classifier.export.to_onnx import Classifier
        from image_classifier.model import checkpoint

        network, normalize, resize = checkpoint.load(folder, "export")
        classifier = torch.inference_mode()(Classifier(network, normalize).eval())
        return cls(lambda images: classifier(images).numpy(), list(network.config.id2label.values()), resize)

    def load(self, path: Path) -> Tensor | str:
        """One image as uint8 [size, size, 3], or what is wrong with it."""
        try:
            return self.resize(decode.decode(path.read_bytes(), self.resize.background))
        except (UnreadableImage, OSError) as error:
            return first_line(error)


def main(
    paths: list[str],
    model: Path,
    top_k: int,
    threshold: float,
    as_json: bool,
    output: Path | None,
    backend: str,
) -> int:
    """Print what each image shows, or write it to `output`; return 1 if any could not be read.

    `model` is a folder as export writes it, `backend` torch, or a format of the ONNX file: onnx, int8. Images pass in
    batches; what is written or printed as JSON is held as text until the end.
    """
    if output is not None and output.suffix not in WRITERS:
        raise UserError(f"--output {output}: the name must end in one of {', '.join(WRITERS)}")
    if output is not None:
        files.check_writable(output)
    runtime.keep_freed_memory()
    predictor = (
        Predictor.from_torch(model / "hf") if backend == "torch" else Predictor.from_onnx(model / FILES[backend])
    )
    images, left_out = _images(paths)
    started, failed = time.perf_counter(), 0
    results: list[dict[str, Any]] = []
    progress = tqdm(_classified(predictor, images), total=len(images), unit=" images", leave=False, disable=None)
    for path, found in progress:
        name = os.fsencode(path).decode(errors="backslashreplace")  # tables and JSON are UTF-8
        if isinstance(found, str):
            failed += 1
            print(f"error: {printable(path)}: {found}", file=sys.stderr)
            results.append({"path": name, "predictions": [], "error": found})
            continue
        order = [k for k in np.argsort(-found, kind="stable")[:top_k] if found[k] >= threshold]
        best = [{"class": predictor.class_names[k], "confidence": float(found[k])} for k in order]
        if as_json or output:
            results.append({"path": name, "predictions": best, "error": None})
        else:
            shown = [f"{printable(one['class'])} {one['confidence']:.1%}" for one in best]
            tqdm.write("  ".join([printable(path), *shown]))
    if output is not None:
        _write(output, results)
    elif as_json:
        print(json.dumps(results, indent=2))
    count = len(images) - failed
    print(f"{count} images, {count / (time.perf_counter() - started):.1f} images/s", file=sys.stderr)
    if left_out:
        some = ", ".join(map(printable, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        print(f"left out: {len(left_out)} hidden files or files that are not images: {some}", file=sys.stderr)
    return 1 if failed else 0


def _write(output: Path, results: list[dict[str, Any]]) -> None:
    """One row for each class that is shown of an image; one without a class where there is none."""
    from pandas import DataFrame

    nothing = [{"class": None, "confidence": None}]
    rows = [row | found for row in results for found in row["predictions"] or nothing]
    table = DataFrame(rows, columns=["path", "class", "confidence", "error"])
    method, options = WRITERS[output.suffix]
    with files.atomic(output) as unfinished:
        getattr(table, method)(unfinished, **options)


def _classified(predictor: Predictor, images: list[Path]) -> Iterator[tuple[Path, np.ndarray | str]]:
    """Every image with its probabilities [classes], or with what is wrong with it; a batch in memory at a time."""
    with ThreadPoolExecutor(runtime.cpus()) as threads:
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            loaded = list(threads.map(predictor.load, batch))
            read = [pixels for pixels in loaded if not isinstance(pixels, str)]
            probabilities = iter(predictor.classify(torch.stack(read)) if read else ())
            for path, pixels in zip(batch, loaded, strict=True):
                yield path, pixels if isinstance(pixels, str) else next(probabilities)


def _images(paths: list[str]) -> tuple[list[Path], list[Path]]:
    """The files named, and the images below the folders named, sorted; and the other files there.

    A file that is named, or whose name ends as an image's does, counts as one, even if it cannot be read.
    """
    images: list[Path] = []
    others: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            images.append(path)
            continue
        before = len(images)
        for file in _below(path):
            hidden = any(decode.is_leftover(part) for part in file.relative_to(path).parts)
            if not hidden and (file.suffix.lower() in decode.suffixes() or decode.is_image(file)):
                images.append(file)
            else:
                others.append(file)
        if len(images) == before:
            raise UserError(f"{printable(path)} holds no images: name an image, or a folder with some")
    return images, others


def _below(folder: Path) -> list[Path]:
    """Every file in a folder and those below it, linked ones too, sorted. Raises UserError: one must not be read."""
    found: list[Path] = []
    seen: set[str] = set()  # links may lead in a circle
    for root, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [path for name in names if (path := Path(root, name)).is_file()]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{printable(error.filename)} cannot be read: {error.strerror}")
