"""MLflow, which holds one run per model, found by the SHA-256 of the weights: train opens it, evaluate and export add.

MLflow never costs a run: whatever it raises is told in one line and the work goes on. What it
missed, `sync` sends later.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.store.db import utils as databases

from image_classifier.core import files
from image_classifier.core.config import PASSWORD, Mlflow
from image_classifier.core.errors import UserError, first_line

# Before mlflow is imported; a value that the user set wins. Its own defaults wait for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "120", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # of uploads; seconds, tries
HASTE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "4", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}  # of all other calls
CHOSEN = {name for name in HASTE if name in os.environ}  # by the user
os.environ.update({name: value for name, value in HASTE.items() if name not in CHOSEN})
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
KIND = {"mlflow.experimentKind": "custom_model_development"}  # or MLflow may open it in its view of language models
MODEL_TAG = "model.sha256"
DATA_TAG = "data.sha256"  # of the index of the training shards
EXPERIMENT_TAG = "dvc.experiment"
TRAINING_TAG = "training.id"  # a random number, so that no user, host or path is told
TRAINING = "mlflow-run"  # in the folder of a training in .resume: the file that holds its id
UNFINISHED = "unfinished-runs"  # in .resume: the runs that lost their server, under the SHA-256 of the weights
databases.MAX_RETRY_COUNT = 4  # to open a database: in a second, not in 100; no setting has it
logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # tells every try
logging.getLogger("alembic").setLevel(logging.WARNING)  # says every table of a fresh sqlite store
logging.getLogger("mlflow").setLevel(logging.ERROR)


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
    lock = files.lock(
        files.repository() / "mlflow.db.lock", timeout=300
    )  # seconds: a fresh store takes 6, or more if busy
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
            return client, client.create_experiment(name, artifact_location=artifacts, tags=KIND)
    if found.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
        raise UserError(f"the experiment {name} was deleted: run `{restore}`, or set mlflow.experiment_name")
    if not KIND.keys() & found.tags.keys():
        client.set_experiment_tag(found.experiment_id, *next(iter(KIND.items())))
    return client, found.experiment_id


def address(settings: Mlflow) -> str:
    """Where MLflow keeps the runs. A relative path of a database is one in the repository, also in a queued run."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking_uri or "sqlite:///mlflow.db"
    if relative := re.fullmatch(r"sqlite:///([^/].*)", uri):
        return f"sqlite:///{files.repository().resolve() / relative[1]}"
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
    return files.repository() / ".resume" / UNFINISHED / sha256


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
