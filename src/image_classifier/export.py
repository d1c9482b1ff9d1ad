"""The model in the formats that others load, and the check that it is still the same model."""

import copy
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, pipeline

from image_classifier import files
from image_classifier.config import Export
from image_classifier.errors import UserError, first_line
from image_classifier.preprocess import Normalize, Resize

OPSET = 20
FILES = {"onnx": "model.onnx", "int8": "model-int8.onnx"}
FORMATS = {"onnx": "the ONNX model", "hf": "transformers' pipeline"}


class Classifier(nn.Module):
    """The whole of serving: uint8 [N, size, size, 3] RGB -> probabilities float32 [N, classes]."""

    def __init__(self, network: PreTrainedModel, normalize: Normalize):
        super().__init__()
        self.network, self.normalize = network, normalize

    def forward(self, image: Tensor) -> Tensor:
        return self.network(pixel_values=self.normalize(image)).logits.softmax(dim=1)


def to_onnx(path: Path, network: PreTrainedModel, normalize: Normalize, resize: Resize, class_names: list[str]):
    """Write an ONNX file with the preprocessing in its graph, class names, resizing and background in its metadata."""
    example = torch.zeros((2, resize.size, resize.size, 3), dtype=torch.uint8)  # 1 would fix the batch size
    network = copy.deepcopy(network)
    network.set_attn_implementation("eager")  # the exporter cannot follow the fused one of Swin in a batch of any size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Classifier(network, normalize).eval(),
            (example,),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    _forget_sources(model)
    facts = {"class_names": json.dumps(class_names), "resize": resize.mode, "background": resize.background}
    onnx.helper.set_model_props(model, facts)
    with files.atomic(path) as unfinished:
        unfinished.write_bytes(model.SerializeToString(deterministic=True))


def _forget_sources(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold absolute paths, so another folder would give other bytes."""
    for graph in (model.graph, *model.functions):
        values = (*graph.input, *graph.output) if isinstance(graph, onnx.GraphProto) else ()
        initializers = graph.initializer if isinstance(graph, onnx.GraphProto) else ()
        for part in (graph, *graph.node, *graph.value_info, *values, *initializers):
            del part.metadata_props[:]
            part.doc_string = ""


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
        raise UserError(f"{path} cannot be loaded ({first_line(error)}): {remedy}") from None


def write(
    folder: Path,
    checkpoint: Path,
    network: PreTrainedModel,
    normalize: Normalize,
    resize: Resize,
    class_names: list[str],
) -> None:
    """Write the float formats of a checkpoint, which holds the network, into `folder`."""
    files.copy(checkpoint, folder / "hf")
    to_onnx(folder / FILES["onnx"], network, normalize, resize, class_names)


def run(
    folder: Path, batches: Callable[[str], Iterable[tuple[Tensor, Tensor]]], num_threads: int | None
) -> dict[str, np.ndarray]:
    """What each format in `folder` makes of the pictures: probabilities float32 [N, classes].

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
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    columns, found = classify.model.config.label2id, []
    for images, _ in batches:
        pictures = [Image.fromarray(picture) for picture in images.numpy()]
        for scores in classify(pictures, top_k=len(columns), function_to_apply="softmax"):
            found.append(np.zeros(len(columns), np.float32))
            for score in scores:
                found[-1][columns[score["label"]]] = score["score"]
    return np.stack(found)


def compare(labels: np.ndarray, torch_probabilities: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """How far another runtime's probabilities [N, classes] are from torch's on the same pictures.

    The relative error is that of each picture's vector of probabilities; the largest counts.
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


def check_evaluated(predictions: Path, hashes: list[str], guesses: list[str]) -> None:
    """Refuse a network that does not say of the test pictures what evaluate wrote down.

    Raises UserError: the metrics are of another checkpoint, or of other pictures.
    """
    rows = pd.read_csv(predictions, dtype=str, keep_default_na=False)
    near_ties = max(1, len(hashes) // 1000)  # which may fall otherwise on a GPU
    if list(rows["image"]) != hashes or (rows["predicted"] != guesses).sum() > near_ties:
        raise UserError(f"{predictions} is not of this checkpoint and these test pictures: run `dvc repro evaluate`")


def in_words(metrics: dict[str, float], count: int) -> str:
    """What `gate` found on `count` pictures, in a line."""
    agreement = min(metrics["onnx_agreement"], metrics["hf_agreement"])
    words = f"ONNX and pipeline agree with torch on {agreement:.2%} of {count} test pictures"
    if "int8_shipped" in metrics:
        fate = "is shipped" if metrics["int8_shipped"] else "was LEFT OUT"
        words += f"; int8 {fate}, {metrics['int8_accuracy_difference']:+.4f} of accuracy"
    return words


def gate(
    folder: Path, labels: np.ndarray, expected: np.ndarray, found: dict[str, np.ndarray], limits: Export
) -> dict[str, float]:
    """The metrics of every format in `folder`, as FORMAT_NAME; `expected` are torch's probabilities.

    A float format has to be the model that was evaluated. An int8 file is another one: it goes unless its accuracy
    is within the limit, and its metrics stay.

    Raises UserError: agreement or relative error of a float format is outside the limits.
    """
    metrics: dict[str, float] = {}
    for form, probabilities in found.items():
        values = compare(labels, expected, probabilities)
        agreement, error = values["agreement"], values["max_relative_error"]
        fault = ""
        if form != "int8" and agreement < limits.min_agreement:
            fault = f"agrees with torch on {agreement:.4%}, less than export.min_agreement = {limits.min_agreement}"
        elif form != "int8" and not error <= limits.max_relative_error:
            fault = f"is off by {error:.2g}, more than export.max_relative_error = {limits.max_relative_error}"
        if fault:
            raise UserError(f"on the test pictures {FORMATS[form]} {fault}: nothing was exported")
        metrics |= {f"{form}_{name}": value for name, value in values.items()}
        if form in FILES:
            metrics[f"{form}_bytes"] = (folder / FILES[form]).stat().st_size
    if "int8" in found:
        lost = round(-metrics["int8_accuracy_difference"] * len(labels))  # pictures
        metrics["int8_shipped"] = int(lost <= limits.max_int8_loss * len(labels) * (1 + 1e-9))  # at the limit too
        if not metrics["int8_shipped"]:
            (folder / FILES["int8"]).unlink()
    return metrics
