"""MLflow, which holds one run per model, found by the SHA-256 of the weights: train opens it, evaluate and export add.

MLflow never costs a run: whatever it raises is told in one line and the work goes on. What it
missed, `sync` sends later.
"""

import io
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from importlib.metadata import version
from pathlib import Path

# Before mlflow is imported; a value that the user set wins. Its own defaults wait for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # of uploads; seconds, tries
HASTE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # of all other calls
CHOSEN = {name for name in HASTE if name in os.environ}  # by the user
os.environ.update({name: value for name, value in HASTE.items() if name not in CHOSEN})
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.db import utils as databases

from image_classifier import files
from image_classifier.config import PASSWORD, Config, Mlflow
from image_classifier.errors import UserError, first_line
from image_classifier.runtime import repository

MODEL_TAG = "model.sha256"
DATA_TAG = "data.sha256"  # of the index of the training shards
ALIAS = "champion"  # of the registered model's version that the workspace exported last, or that was promoted
EXPERIMENT_TAG = "dvc.experiment"
UNFINISHED = "unfinished-runs"  # in .resume: the runs that lost their server, under the SHA-256 of the weights

databases.MAX_RETRY_COUNT = 4  # to open a database: in a second, not in 100; no setting has it
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # tells every try
logging.getLogger("alembic").setLevel(logging.WARNING)  # says every table of a fresh sqlite store
logging.getLogger("mlflow").setLevel(logging.ERROR)


def add_to_model_run(
    settings: Mlflow, sha256: str, values: dict[str, float], artifacts: Sequence[Path], onnx: Path | None = None
) -> None:
    """Add to the newest run of the model with these weights; open one if there is none.

    `values` are metrics under their names in MLflow, `artifacts` files and folders, `onnx` the file of the run's
    model. That becomes the newest version of the registered model, in the workspace also its champion.
    """
    with tolerated("logging"):
        client, experiment = connect(settings)
        run = of_the_model(client, experiment, sha256)
        client.log_batch(run.info.run_id, points(values))  # first: a busy server may give up on large files
        for path in artifacts:
            with tolerated(f"uploading {path}"):
                _upload(client, run, path)
        if onnx is not None:
            registered = _register(client, settings, run.info.run_id, onnx)
            if repository().resolve() == Path.cwd():  # a queued experiment has a folder of its own
                client.set_registered_model_alias(model_name(settings), ALIAS, registered)


def sync(config: Config, sha256: str, metrics: Path, onnx: Path) -> str:
    """Give MLflow what it missed of what is in the folder `metrics`, and the model, once; return the run's id.

    Raises UserError: the metrics are missing, or the server fails.
    """
    best = files.read_json(metrics / "train/metrics.json", "run `dvc repro train`")
    test = files.read_json(metrics / "evaluate/metrics.json", "run `dvc repro evaluate`")
    exported = files.read_json(metrics / "export/metrics.json", "run `dvc repro export`")
    try:
        client, experiment = connect(config.mlflow)
        run = of_the_model(client, experiment, sha256)
        mirror(client, run.info.run_id, metrics / "train")
        values = {f"best_{name.removeprefix('best_')}": value for name, value in best.items() if name != "step"}
        values |= {f"test_{name}": value for name, value in test.items() if not name.startswith("num_")} | exported
        missed = {name: value for name, value in values.items() if name not in run.data.metrics}
        client.log_batch(
            run.info.run_id, points(missed), [] if run.data.params else params(config, test["num_classes"])
        )
        kept = {
            item.path for name in ("", "evaluate", "export") for item in client.list_artifacts(run.info.run_id, name)
        }
        for path in (metrics / "evaluate", metrics / "export", metrics / "report.md"):
            whole = [f"{path.name}/{part.name}" for part in path.iterdir()] if path.is_dir() else [path.name]
            if not kept.issuperset(whole):
                _upload(client, run, path)
        if not _versions(client, config.mlflow, run.info.run_id):
            _register(client, config.mlflow, run.info.run_id, onnx)
    except Exception as error:
        raise UserError(f"MLflow: {reason(error)}; nothing is lost: run sync again when the server answers") from None
    return run.info.run_id


def promote(settings: Mlflow, sha256: str) -> tuple[str, str]:
    """Make the model with these weights the champion; return the registered model's name and the version.

    Raises UserError: it is not registered, or the server fails.
    """
    name = model_name(settings)
    try:
        client, experiment = connect(settings)
        run = newest(client, experiment, MODEL_TAG, sha256)
        versions = _versions(client, settings, run.info.run_id) if run else []
        if not versions:
            raise UserError(f"no version of {name} has the weights of models/export: run sync first")
        client.set_registered_model_alias(name, ALIAS, versions[0])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow: {reason(error)}") from None
    return name, versions[0]


def model_name(settings: Mlflow) -> str:
    """The registered model's name: the setting, or the experiment's without what no registry allows in a name."""
    name = settings.model_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.experiment_name
    return settings.model_name or re.sub(r"[^\w.-]+", "-", name).strip("-") or "image-classifier"


def connect(settings: Mlflow) -> tuple[MlflowClient, str]:
    """The client and the experiment's id; MLFLOW_* variables win over params.yaml."""
    uri = address(settings)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or settings.experiment_name
    if (login := re.search(PASSWORD, uri)) and re.search("[/@]", login[0][2:-1]):  # the rest would be taken for a host
        raise UserError("its address holds a password with / or @: set MLFLOW_TRACKING_USERNAME and _PASSWORD instead")
    mlflow.set_tracking_uri(uri)
    # Without the options that may follow, such as ?timeout=60.
    store = Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None
    # Two processes that create a store or an experiment at once: one of them would fail.
    lock = files.lock(repository() / "mlflow.db.lock", timeout=300)  # seconds: a fresh store takes 6, or more if busy
    if store:
        with lock:
            if not store.exists():
                with files.atomic(store) as unfinished:  # killed among its tables it could not be mended
                    MlflowClient(f"sqlite:///{unfinished}").search_experiments()
    client = MlflowClient()
    with lock:
        found = client.get_experiment_by_name(name)
        if found is None:
            artifacts = store.with_name("mlruns").as_uri() if store else None
            return client, client.create_experiment(name, artifact_location=artifacts)
    if found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(f"the experiment {name} was deleted: run `{restore}`, or set mlflow.experiment_name")
    return client, found.experiment_id


def address(settings: Mlflow) -> str:
    """Where MLflow keeps the runs. A relative path of a database is one in the repository, also in a queued run."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri or "sqlite:///mlflow.db"
    if relative := re.fullmatch(r"sqlite:///([^/].*)", uri):
        return f"sqlite:///{repository().resolve() / relative[1]}"
    return uri


def new_run(client: MlflowClient, experiment: str, tags: dict[str, str] | None = None) -> Run:
    """A run named after the DVC experiment; without one MLflow makes up a name."""
    return client.create_run(experiment, tags=tags, run_name=os.environ.get("DVC_EXP_NAME"))


def newest(client: MlflowClient, experiment: str, tag: str, value: str) -> Run | None:
    """The newest run with this tag, if there is one."""
    query = f"tags.`{tag}` = '{value}'"
    return next(iter(client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])), None)


def note(sha256: str) -> Path:
    """The file that holds the id of the run of these weights, where the run lost its server before it was tagged."""
    return repository() / ".resume" / UNFINISHED / sha256


def of_the_model(client: MlflowClient, experiment: str, sha256: str) -> Run:
    """The newest run of the model with these weights, tagged and finished; a new one if there is none.

    A training that lost its server could not tag its run, and left a note of it. The training is over, and so is its
    run, whatever happens to the stage that adds to it.
    """
    with suppress(MlflowException, OSError):  # there is no note, or it is of another server
        client.set_tag(note(sha256).read_text(), MODEL_TAG, sha256)
        files.remove(note(sha256))
    run = newest(client, experiment, MODEL_TAG, sha256) or new_run(client, experiment)
    client.set_tag(run.info.run_id, MODEL_TAG, sha256)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def mirror(client: MlflowClient, run_id: str, train: Path) -> None:
    """Log what DVCLive's folder holds of the epochs that the run does not."""
    series = [pd.read_csv(path, sep="\t", index_col="step") for path in train.glob("plots/metrics/*.tsv")]
    known = {point.step for point in client.get_metric_history(run_id, "train_loss")}
    for step, values in pd.concat([pd.DataFrame(), *series], axis=1).iterrows():
        if step not in known:
            client.log_batch(run_id, points(values.to_dict(), step))


def log_data(client: MlflowClient, run_id: str, config: Config, sha256: str) -> None:
    """Name the training data in the run: the source, and the SHA-256 of the shards' index."""
    source = "{source}@{revision}".format(**config.data.model_dump()).removesuffix("@None")
    data = Dataset(source, sha256[:32], "dvc", source)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])


def params(config: Config, num_classes: int) -> list[Param]:
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


def points(values: dict[str, float], step: int = 0, **about: str) -> list[Metric]:
    """Metrics for MLflow; `about` names the model or the data that they are of."""
    now = int(time.time() * 1000)  # ms
    return [Metric(name, float(value), now, int(step), **about) for name, value in values.items()]


def reason(error: Exception) -> str:
    """What went wrong in one line, without the password that an address may hold."""
    return re.sub(PASSWORD, "//", first_line(error))


@contextmanager
def tolerated(what: str) -> Iterator[list[str]]:
    """Turn whatever MLflow raises into one line of warning."""
    problems: list[str] = []
    try:
        yield problems
    except Exception as error:
        problems.append(reason(error))
        print(f"warning: MLflow: {what} failed: {problems[0]}; the run goes on without it", file=sys.stderr)


@contextmanager
def _patient() -> Iterator[None]:
    """Give a server the time that large files take, unless the user said how long."""
    mine = {name: value for name, value in PATIENCE.items() if name not in CHOSEN}
    before = {name: os.environ[name] for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        os.environ.update(before)


def _upload(client: MlflowClient, run: Run, path: Path) -> None:
    with _patient():
        if path.is_dir():
            client.log_artifacts(run.info.run_id, str(path), path.name)
        else:
            client.log_artifact(run.info.run_id, str(path))


def _versions(client: MlflowClient, settings: Mlflow, run_id: str) -> list[str]:
    """The versions of the registered model that come from a run, the newest first."""
    found = client.search_model_versions(f"name = '{model_name(settings)}'")
    return sorted((str(one.version) for one in found if one.run_id == run_id), key=int, reverse=True)


def _register(client: MlflowClient, settings: Mlflow, run_id: str, onnx: Path) -> str:
    """Log the model to a run and make it the newest version of the registered model; return the version."""
    failed = None
    with _patient():
        with mlflow.start_run(run_id=run_id):
            client.set_terminated(run_id, "FINISHED")  # start_run has set it to RUNNING
            try:  # an error that left this block would set it to FAILED
                source = _log_onnx(client, run_id, onnx)
            except Exception as error:
                failed = error
        if failed:
            raise failed
        with redirect_stderr(io.StringIO()):  # it tells each step
            return str(mlflow.register_model(source, model_name(settings)).version)


def _log_onnx(client: MlflowClient, run_id: str, path: Path) -> str:
    """Log the model to the active run, with the figures of the epoch that ships and of test; return its address."""
    import onnx

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
    figures = {name: value for name, value in run.data.metrics.items() if name.startswith("test_")}
    used = [one.dataset for one in run.inputs.dataset_inputs][:1]
    about = {"dataset_name": used[0].name, "dataset_digest": used[0].digest} if used else {}
    client.log_batch(run_id, points(figures, best, model_id=logged.model_id, **about))
    return logged.model_uri


def _log_onnx_to_an_old_server(client: MlflowClient, run_id: str, model, options: dict) -> str:
    """MLflow 2 servers have no logged models: there the model is an artifact of the run."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        mlflow.onnx.save_model(model, str(folder), **options)
        client.log_artifacts(run_id, str(folder), "model")
    return f"runs:/{run_id}/model"
