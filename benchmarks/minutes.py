"""Accuracy against minutes of the training that ended last, from the times that MLflow keeps.

python -m benchmarks.minutes --record hour    # after `dvc repro`, in the workspace with its MLflow store
"""

import argparse

from mlflow import MlflowClient

from benchmarks import pairs
from image_classifier.core import config
from image_classifier.training.schedule import image_size


def main() -> None:
    """Print the table: one row an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="NAME", help="put the table between the marks of this name in RESULTS.md")
    options = parser.parse_args()
    params = config.load()
    client = MlflowClient(params.mlflow.tracking_uri or "sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name(params.mlflow.experiment_name)
    (run,) = client.search_runs([experiment.experiment_id], "status = 'FINISHED'", max_results=1)
    series = {name: client.get_metric_history(run.info.run_id, name) for name in ("train_accuracy", "val_accuracy")}
    training = params.training
    lines = [f"### Minutes: {params.model.name} on {params.data.source}", ""]
    lines += [f"`python -m benchmarks.minutes`, {pairs.environment(['torch', 'transformers'])}", ""]
    lines += ["| epoch | trained at, px | minutes since the start | train accuracy | val accuracy |"]
    lines += ["|---|---|---|---|---|"]
    for epoch, (seen, held_out) in enumerate(zip(*series.values(), strict=True)):
        size = image_size(training.resolution_schedule, epoch, training.num_epochs, params.data.image_size)
        minutes = (held_out.timestamp - run.info.start_time) / 60_000
        lines.append(f"| {epoch + 1} | {size} | {minutes:.1f} | {seen.value:.4f} | {held_out.value:.4f} |")
    print("\n".join(lines))
    if options.record:
        pairs.record(options.record, "\n".join(lines))


if __name__ == "__main__":
    main()
