"""export: models/checkpoint, data/shards/test, metrics -> models/export, metrics/export, metrics/report.md."""

import shutil
import sys
from pathlib import Path

import numpy as np
from filelock import FileLock

from image_classifier import config, engine, export, files, models, precision, report, runtime, tracking
from image_classifier.errors import run
from image_classifier.shards import ShardReader
from stages import took

CHECKPOINT, EXPORT = Path("models/checkpoint"), Path("models/export")
METRICS, REPORT = Path("metrics/export"), Path("metrics/report.md")


@FileLock(".resume/export.lock", blocking=False)  # a killed DVC leaves its stage running
def main() -> None:
    """Write the ONNX and Hugging Face folders; refuse them unless they are the model evaluated."""
    print(f"export: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads)
    test = ShardReader("data/shards/test")
    network, normalize, resize = models.load(CHECKPOINT)
    models.check_fits(network, resize, test)
    weights = files.sha256(CHECKPOINT / "model.safetensors")

    def batches(title: str) -> engine.Batches:
        return engine.with_progress(test.batches(params.evaluation.batch_size), len(test), title)

    with files.atomic(EXPORT) as folder:
        folder.mkdir()
        export.to_onnx(folder / "model.onnx", network, normalize, resize, test.class_names)
        session = export.session(folder / "model.onnx", params.num_threads)
        labels, expected = engine.predict(network, normalize, batches("torch"), precision.resolve("cpu", "fp32"))
        found = [session.run(None, {"image": images.numpy()})[0] for images, _ in batches("ONNX Runtime")]
        compared = export.compare(labels, expected, np.concatenate(found))
        export.check(compared, params.export)
        size = (folder / "model.onnx").stat().st_size
        values = {f"onnx_{name}": value for name, value in compared.items()} | {"onnx_bytes": size}
        facts = report.facts(params, values, weights, Path("metrics"), Path("data/shards/train/index.json"))
        shutil.copytree(CHECKPOINT, folder / "hf")
        (folder / "hf/README.md").write_text(report.render("card.md", facts), encoding="utf-8")
        files.seal(folder / "hf")
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", values)
    with files.atomic(REPORT) as unfinished:
        unfinished.write_text(report.render("report.md", facts), encoding="utf-8")

    tracking.add_to_model_run(params.mlflow, weights, values, REPORT, EXPORT / "model.onnx")
    agreement = f"ONNX agrees with torch on {values['onnx_agreement']:.2%} of {len(test)} test pictures"
    print(f"export: {EXPORT}, {REPORT}: {agreement}; {took()}")


if __name__ == "__main__":
    run(main)
