"""evaluate: models/checkpoint, data/shards/test -> metrics/evaluate. The first to open test."""

import sys
from pathlib import Path

from image_classifier import config, engine, files, models, precision, report, runtime, tracking
from image_classifier.errors import run
from image_classifier.shards import ShardReader
from stages import took

CHECKPOINT = Path("models/checkpoint")
METRICS = Path("metrics/evaluate")


@files.lock(".resume/evaluate.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Classify the test pictures; write the metrics with their intervals, every prediction, and galleries."""
    print(f"evaluate: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads)
    chosen = precision.resolve(params.training.device, "fp32")

    test = ShardReader("data/shards/test")
    network, normalize, resize = models.load(CHECKPOINT)
    models.check_fits(network, resize, test)
    network, normalize = network.to(chosen.device), normalize.to(chosen.device)
    batches = engine.with_progress(test.batches(params.evaluation.batch_size), len(test), "evaluate")
    labels, probabilities = engine.predict(network, normalize, batches, chosen)
    with files.atomic(METRICS) as folder:
        values = report.write_evaluation(folder, labels, probabilities, test)
    published = {f"test_{name}": value for name, value in values.items()}
    tracking.add_to_model_run(params.mlflow, files.sha256(CHECKPOINT / "model.safetensors"), published, [METRICS])
    interval = f"{values['accuracy_low']:.4f} to {values['accuracy_high']:.4f}"
    print(f"evaluate: {METRICS}: accuracy {values['accuracy']:.4f} ({interval}) on {len(test)} pictures; {took()}")


if __name__ == "__main__":
    run(main)
