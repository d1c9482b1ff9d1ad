"""MLflow on PostgreSQL, its artifacts and DVC's remote in an S3 store: servers that run, and crash."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from image_classifier.core import files
from tests.helpers.project import command, edit_params, queue_ended, start_queue, wait_for
from tests.helpers.services import S3, MlflowServer, Postgres, postgres_programs

UP_TO_DATE = "Data and pipelines are up to date."
EPOCHS = 24  # so that training takes long enough to be interrupted
RATES = ["2e-3", "3e-3", "4e-3", "5e-3"]


@dataclass
class Services:
    """What a team shares."""

    mlflow: MlflowServer
    postgres: Postgres
    s3: S3


@pytest.fixture
def services(monkeypatch) -> Iterator[Services]:
    """MLflow with its runs in PostgreSQL and its artifacts in S3."""
    if (programs := postgres_programs()) is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as started:
        Path(folder).chmod(0o755)  # for the user that PostgreSQL runs as, who may not enter pytest's own
        Path(folder, "postgres").mkdir()
        postgres, s3 = Postgres(programs, Path(folder, "postgres")), S3(Path(folder, "requests.log"))
        server = MlflowServer(postgres.address, "s3://team/mlflow", **s3.access)
        for end in (postgres.stop, s3.kill, server.kill):
            started.callback(end)
        postgres.start()
        s3.start()
        s3.add_bucket("team")
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # seconds: on a busy machine it is slow, and not away
        yield Services(server, postgres, s3)


@pytest.mark.full
def test_a_team_loses_nothing_on_postgresql_and_s3(project, services, monkeypatch, tmp_path):
    for name, value in services.s3.access.items():
        if name.startswith("AWS"):
            monkeypatch.setenv(name, value)
    edit_params(project, {"training": {"num_epochs": EPOCHS}})
    command(project, "dvc", "remote", "add", "--default", "store", "s3://team/dvc")
    command(project, "git", "commit", "-qam", "remote")
    client = MlflowClient(services.mlflow.address)

    def runs() -> list:
        experiment = client.get_experiment_by_name("image-classifier")
        return client.search_runs([experiment.experiment_id]) if experiment else []

    command(project, "dvc", "exp", "run", "--queue", "-S", f"training.learning_rate={','.join(RATES)}")
    start_queue(project, jobs=4)
    # The database crashes and the server with it, while an experiment trains; then both come back.
    wait_for(lambda: any(run.data.metrics and run.info.status == "RUNNING" for run in runs()))
    services.mlflow.kill()
    services.postgres.stop()
    services.postgres.start()
    services.mlflow.start()

    queue_ended(project, len(RATES))
    command(project, "dvc", "queue", "stop", ok=False)
    names = command(project, "dvc", "exp", "list", "--name-only").stdout.split()
    assert len(names) == len(RATES)
    for name in names:
        command(project, "dvc", "exp", "apply", name)
        command(project, "image-classifier", "sync")  # gives the store what it missed while it was away
        weights = files.sha256(project / "models/checkpoint/model.safetensors")
        (run,) = [run for run in runs() if run.data.tags.get("model.sha256") == weights]
        assert run.info.status == "FINISHED" and run.data.metrics["test_accuracy"] > 0
        points = client.get_metric_history(run.info.run_id, "val_loss")
        assert sorted(point.step for point in points) == list(range(EPOCHS))
        command(project, "git", "reset", "-q", "--hard")
    trained = {run.data.params["training.learning_rate"] for run in runs() if "model.sha256" in run.data.tags}
    assert trained == {str(float(rate)) for rate in RATES}
    assert any("/mlflow/" in asked and asked.startswith("PUT") for asked in services.s3.requests())

    command(project, "dvc", "exp", "apply", names[0])
    command(project, "git", "commit", "-qam", "the best of them")
    command(project, "dvc", "push")
    bare, full, before = tmp_path / "bare", tmp_path / "full", len(services.s3.requests())
    for clone in (bare, full):
        command(tmp_path, "git", "clone", "-q", str(project), str(clone))
    said = command(bare, "dvc", "repro", "--pull", "--allow-missing").stdout
    assert UP_TO_DATE in said and "Running stage" not in said

    def fetched() -> list[str]:
        return [asked for asked in services.s3.requests()[before:] if asked.startswith("GET /team/dvc/files/")]

    assert fetched() == []  # nothing changed, so nothing is needed
    edit_params(bare, {"evaluation": {"batch_size": 32}})  # evaluate needs test and the model, not train or val
    said = command(bare, "dvc", "repro", "--pull", "--allow-missing", "evaluate").stdout
    assert "Running stage 'evaluate'" in said and "Running stage 'train'" not in said
    assert fetched()
    assert not (bare / "data/shards/train").exists() and (bare / "data/shards/test").is_dir()
    command(full, "dvc", "pull")
    assert UP_TO_DATE in command(full, "dvc", "repro").stdout
