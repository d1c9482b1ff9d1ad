"""DVCLive and MLflow behind one small Tracker; the only importer of either.

DVCLive's files are the record that DVC compares. MLflow holds one run per model, found by the
SHA-256 of the weights: train opens it, evaluate and export add to it. MLflow never costs a run:
whatever it raises is told in one line and the work goes on.
"""

import logging
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before mlflow is imported; a value that the user set wins. Its own defaults wait for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")  # seconds
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
import pandas as pd
from dvclive import Live
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.db import utils as databases

from image_classifier import files
from image_classifier.config import PASSWORD, Config, Mlflow
from image_classifier.errors import UserError, first_line
from image_classifier.runtime import repository
from image_classifier.timing import Stopwatch

MODEL_TAG = "model.sha256"
DATA_TAG = "data.sha256"  # of the index of the training shards
ALIAS = "current"  # of the registered model that was exported last
EXPERIMENT_TAG = "dvc.experiment"
TRAINING_TAG = "training.id"  # a random number, so that no user, host or path is told
TRAINING = "mlflow-run"  # in the folder of a training's lock: the file that holds its id
UNFINISHED = "unfinished-runs"  # in .resume: the runs that lost their server, under the SHA-256 of the weights

databases.MAX_RETRY_COUNT = 4  # to open a database: in a second, not in 100; no setting has it
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # tells every try
logging.getLogger("alembic").setLevel(logging.WARNING)  # says every table of a fresh sqlite store
logging.getLogger("mlflow").setLevel(logging.ERROR)


class Tracker(AbstractContextManager):
    """Logs one training to DVCLive's folder, which is emptied, and mirrors it in one MLflow run.

    A training that goes on after it was killed goes on in its run, found by an id that is kept beside
    the file of `lock`, which the caller holds. Every key of `config` and `num_classes` become
    parameters there, `tags` (`data.sha256`, and facts that may differ between equal runs) tags.
    """

    def __init__(self, folder: str, config: Config, num_classes: int, tags: dict[str, str], lock: FileLock):
        # dvcyaml=None: dvc.yaml is written by hand; DVCLive would rewrite it while the pipeline runs.
        self.live = Live(folder, dvcyaml=None, save_dvc_exp=False, report=None)
        self.client: MlflowClient | None = None
        self.run_id = ""
        with _tolerated("starting a run"):
            client, experiment = _connect(config.mlflow)
            path = Path(lock.lock_file)
            tags = tags | {
                TRAINING_TAG: _training_id(path.with_name(TRAINING)),
                EXPERIMENT_TAG: os.environ.get("DVC_EXP_NAME", ""),
            }
            _mark_killed(client, experiment, path)
            # With its tags from the start: killed in the next moment it is still found.
            run = _newest(client, experiment, TRAINING_TAG, tags[TRAINING_TAG]) or _new_run(client, experiment, tags)
            self.run_id = run.info.run_id
            client.update_run(run.info.run_id, status="RUNNING", name=os.environ.get("DVC_EXP_NAME"))
            params = [] if run.data.params else _params(config, num_classes)
            client.log_batch(run.info.run_id, [], params, [RunTag(name, value) for name, value in tags.items()])
            source = "{source}@{revision}".format(**config.data.model_dump()).removesuffix("@None")
            data = Dataset(source, tags[DATA_TAG][:32], "dvc", source)
            client.log_inputs(run.info.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
            self.client = client

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._to_mlflow(status="KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def log_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """Log the metrics of an epoch under its number."""
        self.live.step = epoch
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.make_summary()
        self._to_mlflow()

    def finish(self, best: dict[str, float], model_sha256: str, clock: Stopwatch) -> None:
        """Close the run: `best` becomes DVCLive's metrics.json; the weights' hash finds the run again.

        Measured times go to MLflow alone, so that equal runs leave equal files.
        """
        self.live.summary = dict(best)
        self.live.make_summary()
        times = {f"seconds.{phase}": spent for phase, spent in clock.seconds.items()}
        times |= {f"share.{phase}": spent / sum(clock.seconds.values()) for phase, spent in clock.seconds.items()}
        points = _points(best, prefix="best_") + _points(times | {"images_per_second": clock.rate()})
        self._to_mlflow(points, [RunTag(MODEL_TAG, model_sha256)], "FINISHED")
        if self.client is None and self.run_id:
            with _tolerated("keeping the run's id"), files.atomic(_note(model_sha256)) as note:
                note.write_text(self.run_id)

    def _to_mlflow(self, points: Sequence[Metric] = (), tags: Sequence[RunTag] = (), status: str | None = None) -> None:
        if self.client is None:
            return
        with _tolerated("logging") as problems:
            _mirror(self.client, self.run_id, Path(self.live.dir))
            self.client.log_batch(self.run_id, points, tags=tags)
            if status:
                self.client.set_terminated(self.run_id, status)
        if problems:
            self.client = None  # one pause is enough


def add_to_model_run(
    settings: Mlflow, sha256: str, values: dict[str, float], artifacts: Sequence[Path], onnx: Path | None = None
) -> None:
    """Add to the newest run of the model with these weights; open one if there is none.

    `values` are metrics under their names in MLflow, `artifacts` files and folders, `onnx` the file of the run's
    model, which becomes the newest version of the registered model, with the alias `current`.
    """
    with _tolerated("logging"):
        client, experiment = _connect(settings)
        run = _of_the_model(client, experiment, sha256)
        client.log_batch(run.info.run_id, _points(values))  # first: a busy server may give up on large files
        for path in artifacts:
            if path.is_dir():
                client.log_artifacts(run.info.run_id, str(path), path.name)
            else:
                client.log_artifact(run.info.run_id, str(path))
        if onnx is not None:
            with mlflow.start_run(run_id=run.info.run_id):
                client.set_terminated(run.info.run_id, "FINISHED")  # start_run has set it to RUNNING
                source = _log_onnx(onnx)
            with suppress(MlflowException):  # there is one by this name
                client.create_registered_model(settings.experiment_name)
            registered = client.create_model_version(settings.experiment_name, source, run.info.run_id)
            client.set_registered_model_alias(settings.experiment_name, ALIAS, registered.version)


def sync(config: Config, sha256: str, train: Path, evaluate: Path) -> str:
    """Give MLflow what it missed of what is in the folders `train` and `evaluate`, once; return the run's id.

    Raises UserError: the metrics are missing, or the server fails.
    """
    best = files.read_json(train / "metrics.json", "run `dvc repro train`")
    test = files.read_json(evaluate / "metrics.json", "run `dvc repro evaluate`")
    try:
        client, experiment = _connect(config.mlflow)
        run = _of_the_model(client, experiment, sha256)
        if "best_val_accuracy" not in run.data.metrics:
            _mirror(client, run.info.run_id, train)
            points = _points(best, prefix="best_")
            params = [] if run.data.params else _params(config, test["num_classes"])
            client.log_batch(run.info.run_id, points, params)
        if "test_accuracy" not in run.data.metrics:
            values = {f"test_{name}": value for name, value in test.items() if not name.startswith("num_")}
            client.log_artifacts(run.info.run_id, str(evaluate), evaluate.name)
            client.log_batch(run.info.run_id, _points(values))
    except Exception as error:
        raise UserError(f"MLflow: {_reason(error)}; nothing is lost: run sync again when the server answers") from None
    return run.info.run_id


def _note(sha256: str) -> Path:
    return repository() / ".resume" / UNFINISHED / sha256


def _new_run(client: MlflowClient, experiment: str, tags: dict[str, str] | None = None) -> Run:
    name = os.environ.get("DVC_EXP_NAME")  # without one MLflow makes it up
    return client.create_run(experiment, tags=tags, run_name=name)


def _of_the_model(client: MlflowClient, experiment: str, sha256: str) -> Run:
    """The newest run of the model with these weights; a new one if there is none.

    A training that lost its server could not tag its run, and left a note of it. The training is over, and so is its
    run, whatever happens to the stage that adds to it.
    """
    with suppress(MlflowException, OSError):  # there is no note, or it is of another server
        client.set_tag(_note(sha256).read_text(), MODEL_TAG, sha256)
        files.remove(_note(sha256))
    run = _newest(client, experiment, MODEL_TAG, sha256) or _new_run(client, experiment)
    client.set_tag(run.info.run_id, MODEL_TAG, sha256)
    client.set_terminated(run.info.run_id, "FINISHED")
    return run


def _newest(client: MlflowClient, experiment: str, tag: str, value: str) -> Run | None:
    """The newest run with this tag, if there is one."""
    query = f"tags.`{tag}` = '{value}'"
    return next(iter(client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])), None)


def _training_id(note: Path) -> str:
    """The id that a training cut short left in `note`; a new one, noted before its run exists, if there is none."""
    if not note.is_file():
        with files.atomic(note) as unfinished:
            unfinished.write_text(uuid.uuid4().hex)
    return note.read_text()


def _mark_killed(client: MlflowClient, experiment: str, lock: Path) -> None:
    """Close the runs of other trainings in this repository that died without a word: no process holds their lock."""
    for note in lock.parent.parent.glob(f"*/{TRAINING}"):
        if note.parent == lock.parent:
            continue
        try:
            with files.lock(note.with_name(lock.name)):
                run = _newest(client, experiment, TRAINING_TAG, note.read_text())
                if run and run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, "KILLED")
        except Timeout:  # it is alive
            continue


def _mirror(client: MlflowClient, run_id: str, train: Path) -> None:
    """Log what DVCLive's folder holds of the epochs that the run does not."""
    series = [pd.read_csv(path, sep="\t", index_col="step") for path in train.glob("plots/metrics/*.tsv")]
    known = {point.step for point in client.get_metric_history(run_id, "train_loss")}
    for step, values in pd.concat([pd.DataFrame(), *series], axis=1).iterrows():
        if step not in known:
            client.log_batch(run_id, _points(values.to_dict(), step))


def _params(config: Config, num_classes: int) -> list[Param]:
    """Every key of params.yaml, and the published recipe's five under the names it gave them."""
    published = {
        "model_name": config.model.name,
        "batch_size": config.training.batch_size,
        "learning_rate": config.training.learning_rate,
        "num_epochs": config.training.num_epochs,
        "num_classes": num_classes,
    }
    values = pd.json_normalize(config.model_dump()).to_dict("records")[0] | published
    return [Param(name, str(value)) for name, value in values.items()]


def _points(values: dict[str, float], step: int = 0, prefix: str = "") -> list[Metric]:
    now = int(time.time() * 1000)  # ms
    return [Metric(prefix + name.removeprefix(prefix), float(value), now, int(step)) for name, value in values.items()]


def _log_onnx(path: Path) -> str:
    """Log the model to the active run; return its address."""
    import onnx

    model = onnx.load(path)
    # Two pictures: MLflow leaves the first dimension open.
    values = (model.graph.input[0], model.graph.output[0])
    image, output = ([dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim] for value in values)
    logged = mlflow.onnx.log_model(
        model,
        name="model",
        signature=infer_signature({"image": np.zeros(image, "uint8")}, {"probabilities": np.zeros(output, "float32")}),
        # Named here: MLflow would otherwise load the model in a fresh process to find them out.
        pip_requirements=[f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime")],
        save_as_external_data=False,
    )
    return logged.model_uri


def _connect(settings: Mlflow) -> tuple[MlflowClient, str]:
    """The client and the experiment's id; MLFLOW_* variables win over params.yaml."""
    root = repository().resolve()
    local = f"sqlite:///{root / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri or local
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.experiment_name
    if (login := re.search(PASSWORD, uri)) and re.search("[/@]", login[0][2:-1]):  # the rest would be taken for a host
        raise UserError(
            "a password with / or @ in its address: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    mlflow.set_tracking_uri(uri)
    # Two processes that create a store or an experiment at once: one of them would fail.
    lock = files.lock(root / "mlflow.db.lock", timeout=300)  # seconds: a fresh store takes 6, on a busy machine more
    if uri == local:
        with lock:
            if not (root / "mlflow.db").is_file():
                with files.atomic(root / "mlflow.db") as unfinished:  # killed among its tables it could not be mended
                    MlflowClient(f"sqlite:///{unfinished}").search_experiments()
    client = MlflowClient()
    if experiment := client.get_experiment_by_name(name):
        return client, experiment.experiment_id
    with lock:
        if experiment := client.get_experiment_by_name(name):
            return client, experiment.experiment_id
        artifacts = (root / "mlruns").as_uri() if uri == local else None
        return client, client.create_experiment(name, artifact_location=artifacts)


def _reason(error: Exception) -> str:
    """What went wrong in one line, without the password that an address may hold."""
    return re.sub(PASSWORD, "//", first_line(error))


@contextmanager
def _tolerated(what: str) -> Iterator[list[str]]:
    """Turn whatever MLflow raises into one line of warning."""
    problems: list[str] = []
    try:
        yield problems
    except Exception as error:
        problems.append(_reason(error))
        print(f"warning: MLflow: {what} failed: {problems[0]}; the run goes on without it", file=sys.stderr)
