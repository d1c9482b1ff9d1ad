"""evaluate: models/checkpoint, data/shards/test -> metrics/evaluate. The first to open test."""

import sys
from pathlib import Path

from image_classifier.core import config, files, runtime
from image_classifier.core.entry import exit_with, took
from image_classifier.evaluation.tables import HEADLINE, write_evaluation
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint
from image_classifier.model.batches import batches
from image_classifier.model.inference import predict_in_fp32, with_progress
from image_classifier.tracking.model_run import add_to_model_run

CHECKPOINT = Path("models/checkpoint")
METRICS = Path("metrics/evaluate")


@files.lock(".resume/evaluate.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Classify the test images; write the metrics with their intervals, every prediction, and galleries."""
    print(f"evaluate: {sys.executable}")
    params = config.load()
    runtime.configure(params.num_threads, portable=params.portable)

    test = ShardReader("data/shards/test")
    network, normalize, resize = checkpoint.load(CHECKPOINT)
    checkpoint.check_fits(network, resize, test)
    shown = with_progress(batches(test, params.evaluation.batch_size), len(test), "evaluate")
    labels, probabilities = predict_in_fp32(network, normalize, shown, params.training.device)
    with files.atomic(METRICS) as folder:
        scores = write_evaluation(folder, labels, probabilities, test)
    published = {f"test_{name}": scores.at[name, "value"] for name in HEADLINE}
    add_to_model_run(params.mlflow, files.sha256(CHECKPOINT / "model.safetensors"), published, [METRICS])
    accuracy, low, high = scores.loc["accuracy"]
    print(f"evaluate: {METRICS}: accuracy {accuracy:.4f} ({low:.4f} to {high:.4f}) on {len(test)} images; {took()}")


if __name__ == "__main__":
    exit_with(main)
