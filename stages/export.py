"""export: models/checkpoint, data/shards/test -> models/export, metrics/export, metrics/report.md."""

import shutil
import sys
from pathlib import Path

import numpy as np
from filelock import FileLock

from image_classifier import config, engine, export, files, models, precision, report, runtime, tracking
from image_classifier.errors import run
from image_classifier.shards import ShardReader

CHECKPOINT = Path("models/checkpoint")
EXPORT = Path("models/export")
METRICS = Path("metrics/export")
REPORT = Path("metrics/report.md")


@FileLock(".resume/export.lock", blocking=False)  # a killed DVC leaves its stage running
def main() -> None:
    """Write the ONNX and Hugging Face folders; refuse them unless they are the model evaluated."""
    print(f"export: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads)
    test = ShardReader("data/shards/test")
    network, normalize, resize = models.load(CHECKPOINT)
    models.check_fits(network, resize, test)
    batch_size = params.evaluation.batch_size

    with files.atomic(EXPORT) as folder:
        folder.mkdir()
        shutil.copytree(CHECKPOINT, folder / "hf")
        export.to_onnx(folder / "model.onnx", network, normalize, resize, test.class_names)
        session = export.session(folder / "model.onnx", params.num_threads)
        labels, expected = engine.predict(
            network, normalize, test.batches(batch_size), precision.resolve("cpu", "fp32")
        )
        batches = (session.run(None, {"image": images.numpy()})[0] for images, _ in test.batches(batch_size))
        compared = export.compare(labels, expected, np.concatenate(list(batches)))
        export.check(compared, params.export)
        size = (folder / "model.onnx").stat().st_size
    values = {f"onnx_{name}": value for name, value in compared.items()} | {"onnx_bytes": size}
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", values)
    report.write_report(REPORT, params, Path("metrics/train"), Path("metrics/evaluate"))

    weights = files.sha256(CHECKPOINT / "model.safetensors")
    tracking.add_to_model_run(params.mlflow, weights, values, onnx=EXPORT / "model.onnx")
    print(f"export: {EXPORT}: ONNX agrees with torch on {values['onnx_agreement']:.2%} of {len(test)} test pictures")


if __name__ == "__main__":
    run(main)
