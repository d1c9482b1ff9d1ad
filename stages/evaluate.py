"""evaluate: models/checkpoint, data/shards/test -> metrics/evaluate. The first to open test."""

import sys
from pathlib import Path

from filelock import FileLock

from image_classifier import config, engine, files, models, precision, report, runtime, tracking
from image_classifier.errors import run
from image_classifier.shards import ShardReader

CHECKPOINT = Path("models/checkpoint")
METRICS = Path("metrics/evaluate")


@FileLock(".resume/evaluate.lock", blocking=False)  # a killed DVC leaves its stage running
def main() -> None:
    """Classify the test pictures; write the metrics, the per-class table and every prediction."""
    print(f"evaluate: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads)
    chosen = precision.resolve(params.training.device, "fp32")

    test = ShardReader("data/shards/test")
    network, normalize, resize = models.load(CHECKPOINT)
    models.check_fits(network, resize, test)
    network, normalize = network.to(chosen.device), normalize.to(chosen.device)
    labels, probabilities = engine.predict(network, normalize, test.batches(params.evaluation.batch_size), chosen)
    with files.atomic(METRICS) as folder:
        values = report.write_evaluation(folder, labels, probabilities, test.hashes, test.class_names)
    published = {f"test_{name}": value for name, value in values.items()}
    tracking.add_to_model_run(params.mlflow, files.sha256(CHECKPOINT / "model.safetensors"), published, METRICS)
    print(f"evaluate: accuracy {values['accuracy']:.4f} on {len(test)} test pictures, in {METRICS}")


if __name__ == "__main__":
    run(main)
