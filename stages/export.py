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
        shutil.copytree(CHECKPOINT, folder / "hf")
        export.to_onnx(folder / "model.onnx", network, normalize, resize, test.class_names)
        labels, expected = engine.predict(network, normalize, batches("torch"), precision.resolve("cpu", "fp32"))
        session = export.session(folder / "model.onnx", params.num_threads)
        found = [session.run(None, {"image": images.numpy()})[0] for images, _ in batches("ONNX Runtime")]
        onnx = export.compare(labels, expected, np.concatenate(found))
        export.check("the ONNX model", onnx, params.export)
        hf = export.compare(labels, expected, export.run_pipeline(folder / "hf", batches("transformers' pipeline")))
        export.check("transformers' pipeline", hf, params.export)
        values = {f"onnx_{name}": value for name, value in onnx.items()} | {f"hf_{name}": v for name, v in hf.items()}
        values["onnx_bytes"] = (folder / "model.onnx").stat().st_size
        facts = report.facts(params, values, weights, Path("metrics"), Path("data/shards/train/index.json"))
        (folder / "hf/README.md").write_text(report.render("card.md", facts), encoding="utf-8")
        files.seal(folder / "hf")
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", values)
    with files.atomic(REPORT) as unfinished:
        unfinished.write_text(report.render("report.md", facts), encoding="utf-8")

    tracking.add_to_model_run(params.mlflow, weights, values, REPORT, EXPORT / "model.onnx")
    agreement = f"ONNX and pipeline agree with torch on {min(onnx['agreement'], hf['agreement']):.2%} of {len(test)}"
    print(f"export: {EXPORT}, {REPORT}: {agreement} test pictures; {took()}")


if __name__ == "__main__":
    run(main)
