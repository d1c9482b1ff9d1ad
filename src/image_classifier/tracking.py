"""DVCLive and MLflow behind one small Tracker; the only importer of either.

DVCLive's files are the record that DVC compares. MLflow holds one run per model, found by the
SHA-256 of the weights: train opens it, evaluate and export add to it. MLflow never costs a run:
whatever it raises is told in one line and the work goes on.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before mlflow is imported; a value that the user set wins. Its own defaults wait for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")  # seconds
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
import pandas as pd
from dvclive import Live
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.models import infer_signature

from image_classifier.config import Config, Mlflow
from image_classifier.runtime import repository
from image_classifier.timing import Stopwatch

MODEL_TAG = "model.sha256"

logging.getLogger("alembic").setLevel(logging.WARNING)  # says every table of a fresh sqlite store
logging.getLogger("mlflow").setLevel(logging.ERROR)


class Tracker:
    """Logs one training to DVCLive's folder, which is emptied, and to a new MLflow run.

    Every key of `config` and `num_classes` become parameters there, `tags` (facts that may differ
    between equal runs) tags.
    """

    def __init__(self, folder: str, config: Config, num_classes: int, tags: dict[str, str]):
        # dvcyaml=None: dvc.yaml is written by hand; DVCLive would rewrite it while the pipeline runs.
        self.live = Live(folder, dvcyaml=None, save_dvc_exp=False, report=None)
        self.client: MlflowClient | None = None
        self.run_id = ""
        with _tolerated("starting a run"):
            client, experiment = _connect(config.mlflow)
            # MLflow makes a name up where no DVC experiment runs.
            run = client.create_run(experiment, run_name=os.environ.get("DVC_EXP_NAME"), tags=tags)
            params = [Param(name, str(value)) for name, value in _params(config, num_classes).items()]
            client.log_batch(run.info.run_id, params=params)
            self.client, self.run_id = client, run.info.run_id

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._end("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def log_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """Log the metrics of an epoch under its number."""
        self.live.step = epoch
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.make_summary()
        self._to_mlflow(values, epoch)

    def finish(self, best: dict[str, float], model_sha256: str, clock: Stopwatch) -> None:
        """Close the run: `best` becomes DVCLive's metrics.json; the weights' hash finds the run again.

        Measured times go to MLflow alone, so that equal runs leave equal files.
        """
        self.live.summary = dict(best)
        self.live.make_summary()
        self._to_mlflow(
            {f"best_{name.removeprefix('best_')}": value for name, value in best.items()}, best["best_epoch"]
        )
        times = {f"seconds.{phase}": spent for phase, spent in clock.seconds.items()}
        self._to_mlflow(times | {"images_per_second": clock.rate()}, best["best_epoch"])
        if self.client:
            with _tolerated("tagging the run"):
                self.client.set_tag(self.run_id, MODEL_TAG, model_sha256)
        self._end("FINISHED")

    def _to_mlflow(self, values: dict[str, float], step: int) -> None:
        if self.client is None:
            return
        now = int(time.time() * 1000)
        with _tolerated("logging metrics") as problems:
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            self.client.log_batch(self.run_id, metrics=metrics)
        if problems:
            self.client = None  # one pause is enough

    def _end(self, status: str) -> None:
        if self.client:
            with _tolerated("ending the run"):
                self.client.set_terminated(self.run_id, status)


def add_to_model_run(
    settings: Mlflow,
    model_sha256: str,
    values: dict[str, float],
    artifacts: Path | None = None,
    onnx_model: Path | None = None,
) -> None:
    """Add to the newest finished run of the model with these weights; open one if there is none.

    `values` are metrics under their names in MLflow, `artifacts` a folder, `onnx_model` the file of the run's model.
    """
    with _tolerated("logging"):
        client, experiment = _connect(settings)
        found = client.search_runs(
            [experiment],
            filter_string=f"tags.`{MODEL_TAG}` = '{model_sha256}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        run = found[0] if found else client.create_run(experiment, run_name=os.environ.get("DVC_EXP_NAME"))
        client.log_batch(run.info.run_id, tags=[RunTag(MODEL_TAG, model_sha256)])
        with mlflow.start_run(run_id=run.info.run_id):
            mlflow.log_metrics(values)
            if artifacts is not None:
                mlflow.log_artifacts(str(artifacts), artifacts.name)
            if onnx_model is not None:
                _log_onnx(onnx_model)


def _log_onnx(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    tensors = {}
    for value in (model.graph.input[0], model.graph.output[0]):
        kind = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in kind.shape.dim]  # MLflow leaves the first dimension open
        tensors[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    mlflow.onnx.log_model(
        model,
        name="model",
        signature=infer_signature(*({name: tensor} for name, tensor in tensors.items())),
        # Named here: MLflow would otherwise load the model in a fresh process to find them out.
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime")],
        save_as_external_data=False,
    )


def _connect(settings: Mlflow) -> tuple[MlflowClient, str]:
    """The client and the experiment's id; MLFLOW_* variables win over params.yaml."""
    root = repository().resolve()
    local = f"sqlite:///{root / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri or local
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.experiment_name
    mlflow.set_tracking_uri(uri)
    client = MlflowClient()
    # Two processes that create a store or an experiment at once: one of them would fail.
    with FileLock(root / "mlflow.db.lock"):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return client, experiment.experiment_id
        artifacts = (root / "mlruns").as_uri() if uri == local else None
        return client, client.create_experiment(name, artifact_location=artifacts)


def _params(config: Config, num_classes: int) -> dict[str, Any]:
    """Every key of params.yaml, and the published recipe's five under the names it gave them."""
    return {
        **pd.json_normalize(config.model_dump()).to_dict("records")[0],
        "model_name": config.model.name,
        "batch_size": config.training.batch_size,
        "learning_rate": config.training.learning_rate,
        "num_epochs": config.training.num_epochs,
        "num_classes": num_classes,
    }


@contextmanager
def _tolerated(what: str) -> Iterator[list[str]]:
    """Turn whatever MLflow raises into one line of warning."""
    problems: list[str] = []
    try:
        yield problems
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problems.append(reason)
        print(f"warning: MLflow: {what} failed: {reason}; the run goes on without it", file=sys.stderr)
