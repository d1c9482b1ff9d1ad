"""Adds to the MLflow run of a model, which is found by the SHA-256 of its weights."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from image_classifier.core import files
from image_classifier.core.config import Mlflow
from image_classifier.tracking.server import connection
from image_classifier.tracking.server.connection import CHOSEN, MODEL_TAG, PATIENCE, TRAINING, TRAINING_TAG

DESCRIPTION_TAG = "mlflow.note.content"


def add_to_model_run(
    settings: Mlflow, sha256: str, values: dict[str, float], artifacts: Sequence[Path], description: str = ""
) -> None:
    """Add to the newest run of the model with these weights; open one if there is none.

    `values` are metrics under their names in MLflow, `artifacts` files and folders; `description` is Markdown, which
    MLflow shows above them.
    """
    with connection.tolerated("logging"):
        client, experiment = connection.connect(settings)
        run = claim_run(client, experiment, sha256)
        client.log_batch(run.info.run_id, connection.points(values))  # first: a busy server may give up on large files
        if description:
            client.set_tag(run.info.run_id, DESCRIPTION_TAG, description)
        for path in artifacts:
            with connection.tolerated(f"uploading {path}"):
                upload(client, run, path)


def claim_run(client: MlflowClient, experiment: str, sha256: str) -> Run:
    """The newest run of the model with these weights, tagged and finished; a new one if there is none.

    A training that lost its server could not tag its run, and left a note of it. The training is over, and so is its
    run, whatever happens to the stage that adds to it. Its id in .resume goes: made once more, it gets a new run.
    """
    with suppress(MlflowException, OSError):  # there is no note, or it is of another server
        client.set_tag(connection.note(sha256).read_text(), MODEL_TAG, sha256)
        files.remove(connection.note(sha256))
    run = connection.newest(client, experiment, MODEL_TAG, sha256) or connection.new_run(client, experiment)
    client.set_tag(run.info.run_id, MODEL_TAG, sha256)
    client.set_terminated(run.info.run_id, "FINISHED")
    for path in (files.repository() / ".resume").glob(f"*/{TRAINING}"):
        with suppress(OSError):  # the training is being made once more, or it is another user's
            if path.read_text() == run.data.tags.get(TRAINING_TAG):
                with files.lock(path.with_name("lock")):
                    files.remove(path.parent)
    return client.get_run(run.info.run_id)


@contextmanager
def patient() -> Iterator[None]:
    """Give a server the time that large files take, unless the user said how long."""
    mine = {name: value for name, value in PATIENCE.items() if name not in CHOSEN}
    before = {name: os.environ[name] for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        os.environ.update(before)


def upload(client: MlflowClient, run: Run, path: Path) -> None:
    """Upload a file, or a folder under its name."""
    with patient():
        if path.is_dir():
            client.log_artifacts(run.info.run_id, str(path), path.name)
        else:
            client.log_artifact(run.info.run_id, str(path))
