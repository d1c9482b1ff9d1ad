"""export: models/checkpoint, data/shards/{val,test}, metrics -> models/export, metrics/export, metrics/report.md."""

import sys
from pathlib import Path

from image_classifier import config, engine, export, files, models, pictures, quantization, report, runtime, tracking
from image_classifier.errors import run
from image_classifier.precision import resolve
from image_classifier.shards import ShardReader
from stages import took

CHECKPOINT, EXPORT = Path("models/checkpoint"), Path("models/export")
METRICS, REPORT = Path("metrics/export"), Path("metrics/report.md")


@files.lock(".resume/export.lock")  # a killed DVC leaves its stage running
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

    labels, expected = engine.predict(network, normalize, batches("torch"), resolve("cpu", "fp32"))
    guesses = [test.class_names[guess] for guess in expected.argmax(axis=1)]
    export.check_evaluated(Path("metrics/evaluate/predictions.csv"), test.hashes, guesses)
    with files.atomic(EXPORT) as folder:
        export.write(folder, CHECKPOINT, network, normalize, resize, test.class_names)
        if params.export.int8:
            onnx, int8 = (folder / export.FILES[form] for form in ("onnx", "int8"))
            quantization.to_int8(onnx, int8, params.export.int8_operators, ShardReader("data/shards/val"))
        found = export.run(folder, batches, params.num_threads)
        values = export.gate(folder, labels, expected, found, params.export)
        facts = report.facts(params, values, weights, Path("metrics"), Path("data/shards/train/index.json"))
        (folder / "hf/README.md").write_text(report.render("card.md", facts), encoding="utf-8")
        for sealed in (folder / "hf", folder):
            files.seal(sealed)
    with files.atomic(METRICS) as folder:
        files.write_json(folder / "metrics.json", values)
        pictures.curves(folder / "curves.png", report.epochs(Path("metrics/train")))
    with files.atomic(REPORT) as unfinished:
        unfinished.write_text(report.render("report.md", facts), encoding="utf-8")

    tracking.add_to_model_run(params.mlflow, weights, values, [METRICS, REPORT], EXPORT / export.FILES["onnx"])
    print(f"export: {EXPORT}, {REPORT}: {export.in_words(values, len(test))}; {took()}")


if __name__ == "__main__":
    run(main)
