"""export: models/checkpoint, data/shards/test, metrics -> models/export, metrics/export, metrics/report.md."""

import shutil
import sys
from pathlib import Path

from filelock import FileLock

from image_classifier import config, engine, export, files, models, precision, quantization, report, runtime, tracking
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
        onnx, int8 = folder / export.FILES["onnx"], folder / export.FILES["int8"]
        export.to_onnx(onnx, network, normalize, resize, test.class_names)
        labels, expected = engine.predict(network, normalize, batches("torch"), precision.resolve("cpu", "fp32"))
        found = {"onnx": export.run_onnx(onnx, batches("ONNX Runtime"), params.num_threads)}
        found["hf"] = export.run_pipeline(folder / "hf", batches("transformers' pipeline"))
        if params.export.int8:
            quantization.to_int8(onnx, int8, params.export.int8_operators, ShardReader("data/shards/val"))
            found["int8"] = export.run_onnx(int8, batches("int8"), params.num_threads)
        values = export.gate(folder, labels, expected, found, params.export)
        facts = report.facts(params, values, weights, Path("metrics"), Path("data/shards/train/index.json"))
        (folder / "hf/README.md").write_text(report.render("card.md", facts), encoding="utf-8")
        files.seal(folder / "hf")
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", values)
    with files.atomic(REPORT) as unfinished:
        unfinished.write_text(report.render("report.md", facts), encoding="utf-8")

    tracking.add_to_model_run(params.mlflow, weights, values, REPORT, EXPORT / export.FILES["onnx"])
    agreement = min(values["onnx_agreement"], values["hf_agreement"])
    agree = f"ONNX and pipeline agree with torch on {agreement:.2%} of {len(test)} test pictures"
    print(f"export: {EXPORT}, {REPORT}: {agree}; {took()}")


if __name__ == "__main__":
    run(main)
