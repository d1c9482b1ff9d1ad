"""report: metrics, params, data/shards/{train,val}/index.json -> metrics/report.md, metrics/report."""

import sys
from pathlib import Path

from image_classifier.core import config, files
from image_classifier.core.entry import exit_with, took
from image_classifier.reporting import plots, report
from image_classifier.tracking.model_run import add_to_model_run

METRICS, RECIPES = Path("metrics"), Path("recipes")
INDEX, WEIGHTS = Path("data/shards/train/index.json"), Path("models/checkpoint/SHA256SUMS")


@files.lock(".resume/report.lock")  # a killed DVC leaves its stage running
def main() -> None:
    """Write the report of the whole run, and the curves that it alone shows."""
    print(f"report: {sys.executable}")
    params = config.load()
    weights = files.sums(WEIGHTS, "run `dvc repro train`")["model.safetensors"]
    with files.atomic(METRICS / "report") as folder:
        folder.mkdir()
        plots.curves(folder / "curves.png", report.epochs(METRICS / "train"))
    report.write_report(METRICS / "report.md", params, METRICS, INDEX, weights, RECIPES)
    artifacts, summary = [METRICS / "report", METRICS / "report.md"], report.description(METRICS / "report.md")
    add_to_model_run(params.mlflow, weights, {}, artifacts, summary)
    print(f"report: {METRICS / 'report.md'}; {took()}")


if __name__ == "__main__":
    exit_with(main)
