"""The exported formats and their own runtimes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from torch import Tensor

from image_classifier.core.errors import UserError, first_line, is_out_of_memory

FILES = {"onnx": "model.onnx", "int8": "model-int8.onnx"}


def session(path: str | Path, num_threads: int | None = None) -> onnxruntime.InferenceSession:
    """Open an ONNX file.

    Raises UserError: it is missing or damaged.
    """
    path = Path(path)
    remedy = "run `dvc repro export` to make it again"
    if path.name == FILES["int8"]:
        remedy = "set export.int8=true and run `dvc repro`, which leaves it out above export.max_int8_loss"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0  # 0 = one per core
    options.log_severity_level = 3  # errors
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} cannot be loaded ({first_line(error)}): {remedy}") from None


def run_formats(
    folder: Path, batches: Callable[[str], Iterable[tuple[Tensor, Tensor]]], num_threads: int | None
) -> dict[str, np.ndarray]:
    """What each format in `folder` makes of the images: probabilities float32 [N, classes].

    `batches` begins anew whenever it is called, with a title.
    """
    found = {"onnx": run_onnx(folder / FILES["onnx"], batches("ONNX Runtime"), num_threads)}
    found["hf"] = run_pipeline(folder / "hf", batches("transformers' pipeline"))
    if (folder / FILES["int8"]).is_file():
        found["int8"] = run_onnx(folder / FILES["int8"], batches("int8"), num_threads)
    return found


def run_onnx(path: Path, batches: Iterable[tuple[Tensor, Tensor]], num_threads: int | None) -> np.ndarray:
    """What ONNX Runtime makes of a file: probabilities float32 [N, classes]."""
    opened = session(path, num_threads)
    return np.concatenate([opened.run(None, {"image": images.numpy()})[0] for images, _ in batches])


def run_pipeline(folder: Path, batches: Iterable[tuple[Tensor, Tensor]]) -> np.ndarray:
    """What transformers' own pipeline makes of a Hugging Face folder: probabilities float32 [N, classes]."""
    from transformers import pipeline  # takes seconds to import, which `predict` need not wait for

    classify = pipeline("image-classification", model=str(folder), device="cpu")
    columns, found = classify.model.config.label2id, []
    for images, _ in batches:
        batch = [Image.fromarray(image) for image in images.numpy()]
        for scores in classify(batch, batch_size=len(batch), top_k=len(columns)):
            found.append(np.zeros(len(columns), np.float32))
            for score in scores:
                found[-1][columns[score["label"]]] = score["score"]
    return np.stack(found)
