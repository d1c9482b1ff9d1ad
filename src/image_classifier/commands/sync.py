"""`image-classifier sync`: give MLflow what it missed."""

import subprocess
import sys
from pathlib import Path

from image_classifier.core import config, files, tables
from image_classifier.core.config import Config
from image_classifier.core.errors import UserError
from image_classifier.export import register
from image_classifier.reporting import report
from image_classifier.tracking.model_run import DESCRIPTION_TAG, claim_run, upload
from image_classifier.tracking.server import connection
from image_classifier.training import tracker


def main() -> int:
    """Send what is missing of the current model, or is of an earlier evaluate or export of it."""
    run = sync(config.load(), current_model(), Path("metrics"), Path("models/export/model.onnx"))
    print(f"MLflow run {run} holds metrics/ and the model")
    return 0


def current_model() -> str:
    """The SHA-256 of the weights in models/checkpoint.

    Raises UserError: they, or the metrics beside them, are out of date.
    """
    code = subprocess.run([sys.executable, "-m", "dvc", "status", "-q", "-d", "report"], check=False).returncode
    if code == 1:
        raise UserError("`dvc status` finds changes, so the metrics may be of another model: run `dvc repro` first")
    if code:
        raise UserError("DVC cannot say whether the metrics are of the current model: `dvc status` shows why")
    return files.sha256("models/checkpoint/model.safetensors")


def sync(params: Config, sha256: str, metrics: Path, onnx: Path) -> str:
    """Give MLflow what it missed of what is in the folder `metrics`, and the model, once; return the run's id.

    Raises UserError: the metrics are missing, or the server fails.
    """
    best = tables.read_training(metrics / "train")
    test = files.read_json(metrics / "evaluate/metrics.json", "run `dvc repro evaluate`")
    exported = files.read_json(metrics / "export/metrics.json", "run `dvc repro export`")
    classes = tables.read_classes(metrics / "evaluate/per_class.csv")
    try:
        client, experiment = connection.connect(params.mlflow)
        run = claim_run(client, experiment, sha256)
        tracker.mirror(client, run.info.run_id, metrics / "train")
        values = {f"best_{name.removeprefix('best_')}": value for name, value in best.items()}
        values |= {f"test_{name}": value for name, value in test.items()} | exported
        missed = {name: value for name, value in values.items() if run.data.metrics.get(name) != value}
        settings = [] if run.data.params else tracker.mlflow_params(params, len(classes))
        client.log_batch(run.info.run_id, connection.points(missed), settings)
        for path in (metrics / "evaluate", metrics / "export", metrics / "report", metrics / "report.md"):
            upload(client, run, path)
        client.set_tag(run.info.run_id, DESCRIPTION_TAG, report.description(metrics / "report.md"))
        if not register.is_newest(client, params.mlflow, run.info.run_id, onnx):
            register.register(client, params.mlflow, run.info.run_id, onnx)
    except Exception as error:
        advice = "nothing is lost: run sync again when the server answers"
        raise UserError(f"MLflow: {connection.reason(error)}; {advice}") from None
    return run.info.run_id
