"""The exported model in MLflow's registry."""

import io
import os
import re
import tempfile
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from image_classifier.core import files
from image_classifier.core.config import Mlflow
from image_classifier.tracking.model_run import claim_run, patient
from image_classifier.tracking.server import connection

FILE_TAG = "onnx_sha256"  # of a version: the file that it was made from
ALIAS = "champion"  # of the registered model's version that the workspace exported last, or that was promoted


def add_model(settings: Mlflow, sha256: str, onnx_file: Path) -> None:
    """Add the ONNX file to the run of the model with these weights, as the newest version of the registered model.

    In the workspace that becomes the champion too; a temp or queued experiment, in a folder of its own, moves no alias.
    """
    with connection.tolerated("registering the model"):
        client, experiment = connection.connect(settings)
        run = claim_run(client, experiment, sha256)
        newest = register(client, settings, run.info.run_id, onnx_file)
        if files.repository().resolve() == Path.cwd():
            client.set_registered_model_alias(model_name(settings), ALIAS, newest)


def model_name(settings: Mlflow) -> str:
    """The registered model's name: the setting, or the experiment's without what no registry allows in a name."""
    name = settings.model_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.experiment_name
    return settings.model_name or re.sub(r"[^\w.-]+", "-", name).strip("-") or "image-classifier"


def versions(client: MlflowClient, settings: Mlflow, run_id: str) -> list[str]:
    """The versions of the registered model that come from a run, the newest first."""
    found = client.search_model_versions(f"name = '{model_name(settings)}'")
    return sorted((str(one.version) for one in found if one.run_id == run_id), key=int, reverse=True)


def is_newest(client: MlflowClient, settings: Mlflow, run_id: str, onnx_file: Path) -> bool:
    """Whether the newest version that comes from a run was made from this file."""
    found = versions(client, settings, run_id)
    newest = client.get_model_version(model_name(settings), found[0]) if found else None
    return newest is not None and newest.tags.get(FILE_TAG) == files.sha256(onnx_file)


def register(client: MlflowClient, settings: Mlflow, run_id: str, onnx_file: Path) -> str:
    """Log the model to a run and make it the newest version of the registered model; return the version."""
    failed = None
    with patient():
        with mlflow.start_run(run_id=run_id):
            client.set_terminated(run_id, "FINISHED")  # start_run has set it to RUNNING
            try:  # an error that left this block would set it to FAILED
                source = _log_onnx(client, run_id, onnx_file)
            except Exception as error:
                failed = error
        if failed:
            raise failed
        with redirect_stderr(io.StringIO()):  # it tells each step
            tags = {FILE_TAG: files.sha256(onnx_file)}
            return str(mlflow.register_model(source, model_name(settings), tags=tags).version)


def _log_onnx(client: MlflowClient, run_id: str, path: Path) -> str:
    """Log the model to the active run, with the figures of the epoch that ships and of test; return its address."""
    model = onnx.load(path)
    # Two images: MLflow leaves the first dimension open.
    values = (model.graph.input[0], model.graph.output[0])
    image, output = ([dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim] for value in values)
    signature = infer_signature({"image": np.zeros(image, "uint8")}, {"probabilities": np.zeros(output, "float32")})
    options = {
        "signature": signature,
        # Named here: MLflow would otherwise load the model in a fresh process to find them out.
        "pip_requirements": [f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime")],
        "save_as_external_data": False,
    }
    run = client.get_run(run_id)
    try:
        # By itself MLflow gives the model's page the metrics of one step: step 0, which is the first epoch's.
        best = int(run.data.metrics.get("best_epoch", 0))
        logged = mlflow.onnx.log_model(model, name="model", step=best, **options)
    except MlflowException as error:
        if error.error_code not in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "NOT_IMPLEMENTED"):
            raise
        return _log_onnx_to_an_old_server(client, run_id, model, options)
    # MLflow notes who logged the model and from which path, which others on the server need not know. To delete a tag
    # that is not there is an error, so it is set first.
    client.set_logged_model_tags(logged.model_id, {"mlflow.user": "", "mlflow.source.name": "stages/export.py"})
    client.delete_logged_model_tag(logged.model_id, "mlflow.user")
    figures = {name: value for name, value in run.data.metrics.items() if name.startswith("test_")}
    used = [one.dataset for one in run.inputs.dataset_inputs][:1]
    about = {"dataset_name": used[0].name, "dataset_digest": used[0].digest} if used else {}
    # At step 0, as evaluate logs them: of several steps MLflow shows the last, also after a later evaluate.
    client.log_batch(run_id, connection.points(figures, model_id=logged.model_id, **about))
    return logged.model_uri


def _log_onnx_to_an_old_server(client: MlflowClient, run_id: str, model: onnx.ModelProto, options: dict) -> str:
    """MLflow 2 servers have no logged models: there the model is an artifact of the run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        mlflow.onnx.save_model(model, str(folder), **options)
        client.log_artifacts(run_id, str(folder), "model")
    return f"runs:/{run_id}/model"
