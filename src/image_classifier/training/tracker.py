"""The trackers of a training: DVCLive's files, which DVC compares, and the same in one MLflow run."""

import os
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
from dvclive import Live
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from image_classifier.core import files, tables
from image_classifier.core.config import Config
from image_classifier.tracking.server import connection
from image_classifier.tracking.server.connection import DATA_TAG, EXPERIMENT_TAG, MODEL_TAG, TRAINING, TRAINING_TAG
from image_classifier.training.timing import TRACKING, Stopwatch

# Facts that begin so describe the machine and the code: they go into one artifact, the others become tags.
ENVIRONMENT = ("python", "platform", "processor", "threads", "deterministic", "git.", "version.")
HEADLINE = ("best_epoch", "val_accuracy", "val_loss")  # of metrics.json


class Tracker(AbstractContextManager):
    """Logs one training to DVCLive's folder, which is emptied, and mirrors it in one MLflow run.

    A training that goes on after it was killed goes on in its run, found by an id that is kept beside
    the file of `lock`, which the caller holds. Every key of `config` and `num_classes` become
    parameters there. `facts` (`data.sha256`, and what may differ between equal runs) become tags and environment.json.

    After a failure the next epoch tries again and sends what is missing; after several in a row only
    every second, fourth, ... epoch does, so that a server that does not answer costs seconds.
    """

    def __init__(
        self, folder: str, config: Config, num_classes: int, facts: dict[str, str], lock: FileLock, clock: Stopwatch
    ):
        # dvcyaml=None: dvc.yaml is written by hand; DVCLive would rewrite it while the pipeline runs.
        self.live = Live(folder, dvcyaml=None, save_dvc_exp=False, report=None)
        self.config, self.num_classes, self.clock = config, num_classes, clock
        self.environment = {name: value for name, value in facts.items() if name.startswith(ENVIRONMENT)}
        self.tags = {name: value for name, value in facts.items() if name not in self.environment}
        self.lock = Path(lock.lock_file)
        self.client: MlflowClient | None = None
        self.run_id = ""
        self.failures = self.pause = 0  # in a row; epochs until the next try
        self.described = False  # whether the run has environment.json
        self._try("starting a run")

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._try("logging", status="KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        if self.live._dvc_repo is not None:  # or git's files, still open at exit, print errors after the real one
            self.live._dvc_repo.close()

    def log_epoch(self, epoch: int, values: dict[str, float]) -> None:
        """Log the metrics of an epoch under its number."""
        with self.clock(TRACKING):
            self.live.step = epoch
            for name, value in values.items():
                self.live.log_metric(name, value)
            self.live.make_summary()
            if self.pause:
                self.pause -= 1
            else:
                self._try("logging")

    def finish(self, best: dict[str, float], model_sha256: str) -> None:
        """Close the run: the headline figures of `best` become metrics.json; the weights' hash finds it again.

        Measured times go to MLflow alone, so that equal runs leave equal files.
        """
        best = {name: best[name] for name in HEADLINE}
        files.write_json(self.live.metrics_file, best)  # DVCLive itself would add its step
        figures = {f"best_{name.removeprefix('best_')}": value for name, value in best.items()}
        points = connection.points(figures | {"images_per_second": self.clock.rate()})
        self._try("logging", points, [RunTag(MODEL_TAG, model_sha256)], "FINISHED")
        if self.client and not self.failures:
            if not self.described:
                self._describe(self.client)
            with connection.tolerated("uploading seconds.json"):
                self.client.log_dict(self.run_id, dict(self.clock.seconds), "seconds.json")
        if self.failures and self.run_id:
            with connection.tolerated("keeping the run's id"), files.atomic(connection.note(model_sha256)) as note:
                note.write_text(self.run_id)

    def _try(
        self, what: str, points: Sequence[Metric] = (), tags: Sequence[RunTag] = (), status: str | None = None
    ) -> None:
        """Send what the run lacks; open it first, if that failed before."""
        with connection.tolerated(what) as problems:
            client = self.client = self.client or self._begin()
            mirror(client, self.run_id, Path(self.live.dir))
            client.log_batch(self.run_id, points, tags=tags)
            if status:
                client.set_terminated(self.run_id, status)
        self.failures = self.failures + 1 if problems else 0
        self.pause = 2 ** (self.failures - 1) - 1 if problems else 0

    def _begin(self) -> MlflowClient:
        """Open the run, or find the one that this training had."""
        client, experiment = connection.connect(self.config.mlflow)
        tags = self.tags | {
            TRAINING_TAG: _training_id(self.lock.with_name(TRAINING)),
            EXPERIMENT_TAG: os.environ.get("DVC_EXP_NAME", ""),
            "mlflow.source.name": "stages/train.py",
            "mlflow.source.git.commit": self.environment.get("git.commit", ""),
        }
        _mark_killed(client, experiment, self.lock)
        # With its tags from the start: killed in the next moment it is still found.
        run = connection.newest(client, experiment, TRAINING_TAG, tags[TRAINING_TAG])
        run = run or connection.new_run(client, experiment, tags)
        self.run_id = run.info.run_id
        client.update_run(self.run_id, status="RUNNING", name=os.environ.get("DVC_EXP_NAME"))
        params = [] if run.data.params else mlflow_params(self.config, self.num_classes)
        client.log_batch(self.run_id, [], params, [RunTag(name, value) for name, value in tags.items()])
        log_data(client, self.run_id, self.config, tags[DATA_TAG])
        self._describe(client)
        return client

    def _describe(self, client: MlflowClient) -> None:
        """Upload what the run was made with; `finish` tries again if that fails."""
        with connection.tolerated("uploading environment.json") as problems:
            if self.environment:
                client.log_dict(self.run_id, self.environment, "environment.json")
        self.described = not problems


def _training_id(note: Path) -> str:
    """The id that a training cut short left in `note`; a new one, noted before its run exists, if there is none."""
    if not note.is_file():
        with files.atomic(note) as unfinished:
            unfinished.write_text(uuid.uuid4().hex)
    return note.read_text()


def _mark_killed(client: MlflowClient, experiment: str, lock: Path) -> None:
    """Close the runs of other trainings in this repository that died without a word: no process holds their lock."""
    for note in lock.parent.parent.glob(f"*/{TRAINING}"):
        other = note.with_name(lock.name)
        if note.parent == lock.parent or not other.is_file():
            continue
        try:
            training = note.read_text()
            with files.lock(other):  # only to see that no one holds it: whoever goes on with it needs it
                pass
        except (Timeout, FileNotFoundError):  # it is alive, or has just ended
            continue
        run = connection.newest(client, experiment, TRAINING_TAG, training)
        if run and run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, "KILLED")


def mirror(client: MlflowClient, run_id: str, train: Path) -> None:
    """Log what DVCLive's folder holds of the epochs that the run does not."""
    known = {point.step for point in client.get_metric_history(run_id, "train_loss")}
    for step, values in tables.read_series(train).iterrows():
        if step not in known:
            client.log_batch(run_id, connection.points(values.to_dict(), step))


def log_data(client: MlflowClient, run_id: str, config: Config, sha256: str) -> None:
    """Name the training data in the run: the source, and the SHA-256 of the shards' index."""
    source = "{source}@{revision}".format(**config.data.model_dump()).removesuffix("@None")
    data = Dataset(source, sha256[:32], "dvc", source)
    client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])


def mlflow_params(config: Config, num_classes: int) -> list[Param]:
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
