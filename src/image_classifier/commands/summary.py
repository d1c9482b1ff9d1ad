"""`image-classifier summary`: what the last run gave, and what to type next."""

from pathlib import Path

from image_classifier.core import files, lock, tables
from image_classifier.core.errors import UserError

METRICS, EXPORT, LOCK = Path("metrics"), Path("models/export"), Path("dvc.lock")
NEXT = (
    ("dvc exp run -S training.learning_rate=3e-4", "change a parameter; what does not depend on it is not run again"),
    ("dvc metrics diff", "compare with the last commit"),
    ("dvc plots show", "curves, confusion matrix, reliability, galleries"),
    ("image-classifier predict FOLDER", "classify images"),
    ("make ui", "the runs in MLflow, on http://127.0.0.1:5000"),
)


def main() -> int:
    """Print the accuracy with its interval, where the model is, and the next commands.

    Raises UserError: the pipeline has not been run to its end, or not here.
    """
    remedy = "run `dvc repro`"
    for path in (EXPORT / "SHA256SUMS", METRICS / "evaluate/intervals.csv", METRICS / "evaluate/predictions.csv", LOCK):
        if not path.is_file():
            raise UserError(f"{path} is missing: {remedy}")
    run = lock.params_of_run(lock.stages_of(LOCK.read_text(), str(LOCK)), str(LOCK), lock.ALL)
    best = tables.read_training(METRICS / "train")
    parity = files.read_json(METRICS / "export/metrics.json", remedy)
    accuracy, low, high = tables.read_intervals(METRICS / "evaluate/intervals.csv").loc["accuracy"]
    predictions = tables.read_predictions(METRICS / "evaluate/predictions.csv")
    wrong = int((predictions["actual"] != predictions["predicted"]).sum())
    compared = min(len(predictions), tables.COMPARED)
    agreement = min(parity["onnx_agreement"], parity["hf_agreement"])
    print(f"\n{run['model.name']} on {run['data.source']}")
    interval, images = f"95% interval {low:.2%} to {high:.2%}", f"{len(predictions):,} images"
    print(f"  test accuracy  {accuracy:.2%} ({interval}): {wrong} mistakes in {images}")
    epoch, epochs = best["best_epoch"] + 1, run["training.num_epochs"]
    print(f"  best epoch     {epoch} of {epochs}, val accuracy {best['val_accuracy']:.2%}")
    agreed = f"{agreement:.2%} of {compared:,} test images"
    print(f"  model          {EXPORT}/model.onnx and {EXPORT}/hf agree with torch on {agreed}")
    print(f"  report         {METRICS}/report.md\n")
    print("Next, after `source .venv/bin/activate`:")
    width = max(len(command) for command, _ in NEXT)
    for command, what in NEXT:
        print(f"  {command:<{width}}  {what}")
    return 0
