"""export: models/checkpoint, data/shards/{val,test}, metrics/evaluate -> models/export, metrics/export."""

import sys
from pathlib import Path

from image_classifier.core import config, files, runtime
from image_classifier.core.entry import exit_with, took
from image_classifier.export import formats, parity
from image_classifier.export.card import write_card
from image_classifier.export.int8 import to_int8
from image_classifier.export.register import add_model
from image_classifier.export.to_onnx import to_onnx
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint
from image_classifier.model.batches import batches
from image_classifier.model.inference import Batches, predict_in_fp32, with_progress
from image_classifier.tracking.model_run import add_to_model_run

CHECKPOINT, EXPORT, INDEX = Path("models/checkpoint"), Path("models/export"), Path("data/shards/train/index.json")
EVALUATED, METRICS = Path("metrics/evaluate"), Path("metrics/export")


@files.lock(".resume/export.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Write the ONNX and Hugging Face folders; refuse them unless they are the model that was evaluated."""
    print(f"export: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads, portable=params.portable)
    test = ShardReader("data/shards/test")
    network, normalize, resize = checkpoint.load(CHECKPOINT)
    checkpoint.check_fits(network, resize, test)
    weights, rows = files.sha256(CHECKPOINT / "model.safetensors"), parity.sample(len(test))

    def shown(title: str) -> Batches:
        return with_progress(batches(test, params.evaluation.batch_size, rows), len(rows), title)

    labels, expected = predict_in_fp32(network, normalize, shown("torch"), params.training.device)
    parity.check_evaluated(EVALUATED / "predictions.csv", test, rows, expected, params.export.max_relative_error)
    with files.atomic(EXPORT) as folder:
        files.copy(CHECKPOINT, folder / "hf")
        to_onnx(folder / formats.FILES["onnx"], network, normalize, resize, test.class_names)
        if params.export.int8:
            onnx, int8 = (folder / formats.FILES[form] for form in ("onnx", "int8"))
            to_int8(onnx, int8, params.export.int8_operators, ShardReader("data/shards/val"))
        found = formats.run_formats(folder, shown, params.num_threads)
        table = parity.gate(folder, labels, expected, found, params.export)
        write_card(folder / "hf/README.md", params, weights, EVALUATED, INDEX, hasattr(network, "timm_model"))
        for sealed in (folder / "hf", folder):
            files.seal(sealed)
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", parity.headline(table))
        table.to_csv(folder / "parity.csv")
    add_to_model_run(params.mlflow, weights, parity.headline(table), [METRICS])
    add_model(params.mlflow, weights, EXPORT / formats.FILES["onnx"])
    print(f"export: {EXPORT}: {parity.in_words(table, len(rows))}; {took()}")


if __name__ == "__main__":
    exit_with(main)
