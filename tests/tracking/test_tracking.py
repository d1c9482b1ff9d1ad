"""What the real runs left in MLflow, and that MLflow never costs a run."""

import getpass
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import mlflow.onnx
import onnx
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from image_classifier import __main__ as command_line
from image_classifier.commands import ui
from image_classifier.commands.promote import promote
from image_classifier.commands.sync import sync
from image_classifier.core import config, files
from image_classifier.core.errors import UserError
from image_classifier.export import register
from image_classifier.export.register import add_model
from image_classifier.tracking.model_run import add_to_model_run
from image_classifier.tracking.server import connection
from image_classifier.tracking.server.connection import MODEL_TAG, TRAINING, TRAINING_TAG
from image_classifier.training.timing import Stopwatch
from image_classifier.training.tracker import Tracker
from image_classifier.training.trainer import Trainer
from stages import evaluate, train
from tests.helpers.project import HANGS, command, edit_params, queue_ended, read, start_queue
from tests.helpers.services import MlflowServer


@pytest.fixture
def client(trained) -> MlflowClient:
    return MlflowClient(f"sqlite:///{trained / 'mlflow.db'}")


def runs(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("image-classifier")
    return client.search_runs([experiment.experiment_id])


def test_one_run_holds_the_model_from_params_to_test_metrics(trained, client):
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["model.sha256"] == files.sha256(trained / "models/checkpoint/model.safetensors")
    params = run.data.params
    assert params["training.learning_rate"] == params["learning_rate"] == "0.01"
    assert params["num_classes"] == "10" and params["seed"] == "0" and params["data.source"] == "digits"
    measured = json.loads((trained / "metrics/evaluate/metrics.json").read_text())
    for name in ("accuracy", "precision", "recall", "f1_score"):
        assert run.data.metrics[f"test_{name}"] == pytest.approx(measured[name])
    assert run.data.metrics["onnx_agreement"] == 1.0
    assert run.data.metrics["images_per_second"] > 0
    seconds = json.loads(Path(client.download_artifacts(run.info.run_id, "seconds.json")).read_text())
    assert seconds["forward and backward"] > 0
    assert len(run.data.metrics) < 30 and len(run.data.tags) < 20  # what people compare; the rest are artifacts


def test_mlflow_and_dvclive_hold_the_same_series(trained, client):
    (run,) = runs(client)
    assert_same_series(client, run.info.run_id, trained)


def assert_same_series(client: MlflowClient, run_id: str, folder: Path) -> None:
    files = list((folder / "metrics/train/plots/metrics").glob("*.tsv"))
    assert len(files) == 13
    for path in files:
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        history = sorted(client.get_metric_history(run_id, path.stem), key=lambda point: point.step)
        assert [(m.step, m.value) for m in history] == [(int(step), float(value)) for step, value in rows]


def test_the_logged_model_is_onnx_with_a_signature(trained, client):
    (run,) = runs(client)
    (model,) = client.search_logged_models([run.info.experiment_id])
    path = Path(urlparse(model.artifact_location).path)
    assert path.is_relative_to(trained / "mlruns")
    text = (path / "MLmodel").read_text()
    assert model.source_run_id == run.info.run_id
    assert "onnx" in text and "uint8" in text and "probabilities" in text


def test_a_store_that_cannot_be_reached_costs_no_run(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    shutil.rmtree("models/checkpoint")
    train.main()
    evaluate.main()
    assert (project / "models/checkpoint/model.safetensors").exists()
    assert "warning: MLflow: starting a run failed" in capsys.readouterr().err


def test_a_damaged_store_costs_no_run(project, capsys):
    Path("mlflow.db").write_bytes(b"no database" * 1000)
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow: logging failed: ") and "file is not a database" in line


def test_a_store_that_cannot_be_opened_is_given_up(project, monkeypatch, capsys):
    naps = []
    monkeypatch.setattr(connection.databases.time, "sleep", naps.append)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'metrics'}")  # a folder
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [])
    assert 0 < sum(naps) < 5  # seconds between its tries, which MLflow alone would stretch to 100
    assert capsys.readouterr().err.startswith("warning: MLflow: logging failed: ")


def test_a_server_that_never_answers_is_given_up(project, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://name:secret@127.0.0.1:{silent.getsockname()[1]}")
        add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [])
    warning = capsys.readouterr().err
    assert "warning: MLflow: logging failed" in warning and "secret" not in warning
    tries = 1 + int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    assert tries * int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) < 5  # seconds, once


def test_a_model_without_a_run_gets_one(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [Path("params.yaml")])
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_loss": 1.5}, [Path("params.yaml")])
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("another").experiment_id])
    assert run.data.metrics == {"test_accuracy": 0.5, "test_loss": 1.5}


def tracker(name: str, **tags: str) -> Tracker:
    """A training whose lock, and what it keeps beside it, lie in .resume/NAME, as its state does."""
    Path(".resume", name).mkdir(exist_ok=True)
    lock = FileLock(f".resume/{name}/lock")
    Path(lock.lock_file).touch()  # which stays when its holder dies
    return Tracker("metrics/train", config.load(), 10, {"data.sha256": "0", **tags}, lock, Stopwatch())


def test_a_run_that_fails_does_not_stay_running(project):
    def fail():
        with tracker("fails", test="fails"):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = [run for run in runs(client) if run.data.tags.get("test") == "fails"]
    assert run.info.status == "FAILED"


def test_after_a_bug_in_training_the_last_line_is_the_bug(project):
    """And none of `Exception ignored in ...` from what DVCLive holds open."""
    command(project, "git", "gc", "-q")  # packs, as in every clone
    code = "from image_classifier.training.trainer import Trainer; Trainer.epochs = lambda self: 1 / 0\n"
    code += "from stages import train; train.main()"
    told = command(project, sys.executable, "-c", code, ok=False, PYTHONPATH="src").stderr
    assert told.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_killed_training_goes_on_in_its_run_and_others_end_as_killed(project):
    def status(run_id: str) -> str:
        return client.get_run(run_id).info.status

    client, epoch = MlflowClient(f"sqlite:///{project / 'mlflow.db'}"), {"train_loss": 1.5, "val_accuracy": 0.5}
    first = tracker("first")
    with FileLock(".resume/first/lock"):
        first.log_epoch(0, epoch)
        other = tracker("other")
        assert (status(first.run_id), status(other.run_id)) == ("RUNNING", "RUNNING")  # the first is alive
    # Both have died without a word, and the first goes on.
    again = tracker("first")
    assert again.run_id == first.run_id
    assert (status(first.run_id), status(other.run_id)) == ("RUNNING", "KILLED")
    again.log_epoch(0, epoch)  # from the resume state, as DVCLive needs it
    again.log_epoch(1, epoch)
    again.finish(epoch | {"val_loss": 1.0, "best_epoch": 1}, "0" * 64)
    assert [point.step for point in client.get_metric_history(first.run_id, "train_loss")] == [0, 1]
    assert status(first.run_id) == "FINISHED"


def test_the_same_training_elsewhere_has_a_run_of_its_own(project, tmp_path, monkeypatch):
    """On another machine with the same host name, or in another clone: the same path, the same server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")
    client, here = MlflowClient(f"sqlite:///{project / 'mlflow.db'}"), tracker("same")
    monkeypatch.chdir(shutil.copytree(project, tmp_path / "clone", ignore=shutil.ignore_patterns(".resume")))
    Path(".resume").mkdir()
    there, other = tracker("same"), tracker("other")
    assert len({here.run_id, there.run_id, other.run_id}) == 3
    assert client.get_run(here.run_id).info.status == "RUNNING"  # whether it is alive cannot be seen from there
    assert client.get_run(there.run_id).info.status == "KILLED"


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_a_training_killed_just_before_its_end_goes_on_in_its_run(project, status):
    client, first = MlflowClient(f"sqlite:///{project / 'mlflow.db'}"), tracker("first")
    client.set_tag(first.run_id, MODEL_TAG, "0" * 64)
    client.set_terminated(first.run_id, status)
    assert tracker("first").run_id == first.run_id


def test_a_dvc_killed_before_it_noted_that_train_ended_leads_to_no_second_run(project):
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    for expected in (2, 2):  # one is of the fixture
        train.main()
        assert len(runs(client)) == expected
        assert not list(Path(".resume").glob("*/epoch-*"))
    evaluate.main()
    assert not list(Path(".resume").glob(f"*/{TRAINING}"))
    train.main()  # as `dvc repro --force` would
    assert len(runs(client)) == 3


def test_a_run_has_its_tags_from_the_start(project, monkeypatch):
    def killed(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "update_run", killed)
        with pytest.raises(SystemExit):
            tracker("early")
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    drawn = Path(".resume/early", TRAINING).read_text()
    (orphan,) = [run for run in runs(client) if run.data.tags.get(TRAINING_TAG) == drawn]
    assert tracker("early").run_id == orphan.info.run_id


def test_no_tag_tells_a_user_a_host_or_a_path(trained, client):
    (run,) = runs(client)
    (model,) = client.search_logged_models([run.info.experiment_id])
    told = " ".join([*run.data.tags.values(), *model.tags.values(), run.info.user_id])
    for secret in (str(Path.home()), str(trained), sys.prefix, platform.node(), getpass.getuser()):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", told), secret


@pytest.mark.parametrize("password", ["hushed", "hushed/muted@stilled", "hushed:muted@stilled/quiet"])
def test_a_password_is_never_told(project, monkeypatch, capsys, password):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://somebody:{password}@127.0.0.1:9")
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [])
    told = capsys.readouterr().err
    assert told.startswith("warning: MLflow: logging failed")
    assert not any(part in told for part in ("somebody", *re.split("[:/@]", password)))
    edit_params(project, {"mlflow": {"tracking_uri": f"http://somebody:{password}@127.0.0.1:9"}})
    with pytest.raises(UserError, match="mlflow.tracking_uri holds a password") as refused:
        config.load()
    assert password not in str(refused.value)


def test_a_killed_export_leaves_no_run_running(project, monkeypatch):
    client, seen = MlflowClient(f"sqlite:///{project / 'mlflow.db'}"), []

    def looks(*_):
        seen.extend(run.info.status for run in runs(client) if run.data.tags.get(MODEL_TAG) == "1" * 64)
        raise ValueError

    monkeypatch.setattr(register, "_log_onnx", looks)
    add_model(config.load().mlflow, "1" * 64, Path("models/export/model.onnx"))
    assert seen == ["FINISHED"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Start a real MLflow server on one store, as often as it is asked to."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # seconds: on a busy machine it is slow, and not away
    server = MlflowServer(f"sqlite:///{tmp_path / 'server.db'}", tmp_path / "kept")
    yield server.address, server.start, server.kill
    server.kill()


@pytest.mark.parametrize("back_before_evaluate", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_server_that_goes_away_costs_no_step_and_sync_replays_all_once(
    project, trained, server, monkeypatch, capsys, back_before_evaluate
):
    address, start, kill = server
    start()
    validate, calls = Trainer.validate, []

    def loses_the_server(self, size):
        calls.append(1)
        if len(calls) == 2:
            kill()
        return validate(self, size)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(Trainer, "validate", loses_the_server)
    train.main()
    if back_before_evaluate:
        start()
    evaluate.main()
    assert "warning: MLflow: logging failed" in capsys.readouterr().err
    if back_before_evaluate:
        kill()
    model = files.sha256("models/checkpoint/model.safetensors")
    assert model == files.sha256(trained / "models/checkpoint/model.safetensors")

    folders = Path("metrics"), Path("models/export/model.onnx")
    with pytest.raises(UserError, match="run sync again when the server answers"):
        sync(config.load(), model, *folders)
    start()
    run_id = sync(config.load(), model, *folders)
    assert sync(config.load(), model, *folders) == run_id
    client = MlflowClient(address)
    run = client.get_run(run_id)
    measured = json.loads(Path("metrics/evaluate/metrics.json").read_text())
    assert run.data.tags["model.sha256"] == model and run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == measured["accuracy"]
    assert run.data.params["training.learning_rate"] == "0.01"
    assert {item.path for item in client.list_artifacts(run_id, "evaluate")} >= {"evaluate/predictions.csv"}
    assert_same_series(client, run_id, project)
    (only,) = runs(client)  # the one that lost its server, and no second one
    assert only.info.run_id == run_id


def test_two_first_runs_at_once_share_a_fresh_store(project):
    for path in project.glob("mlflow.db*"):
        path.unlink()
    (project / ".mlflow.db.unfinished").write_bytes(b"of a process that was killed among its tables")
    code = (
        "from stages.evaluate import config, add_to_model_run, Path; "
        "add_to_model_run(config.load().mlflow, '{}' * 64, {{}}, [Path('params.yaml')])"
    )
    commands = [[sys.executable, "-c", code.format(number)] for number in range(2)]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for words in commands]
    for process in both:
        assert process.communicate(timeout=HANGS)[1] == ""
    assert len(runs(MlflowClient(f"sqlite:///{project / 'mlflow.db'}"))) == 2


def test_a_temp_experiment_runs_its_own_code_and_lands_in_the_repositorys_store(project):
    module = project / "stages/train.py"
    module.write_text(module.read_text().replace('print(f"train: {sys.executable}', 'print(f"train: changed code'))
    result = command(project, "dvc", "exp", "run", "--temp", "-n", "temp-run", "-S", "training.learning_rate=3e-3")
    assert "changed code" in result.stdout
    assert "3e-3" not in (project / "params.yaml").read_text()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = [run for run in runs(client) if run.info.run_name == "temp-run"]
    assert run.data.params["learning_rate"] == "0.003"
    assert "test_accuracy" in run.data.metrics and "onnx_agreement" in run.data.metrics
    shown = json.loads(command(project, "dvc", "exp", "show", "--json").stdout)
    assert "temp-run" in json.dumps(shown)
    assert run.data.tags["dvc.experiment"] == "temp-run"
    compared = command(project, "python", "-m", "image_classifier", "compare", "HEAD", "temp-run").stdout
    assert "temp-run against HEAD, on the same 360 test images" in compared
    assert "training.learning_rate: 0.01 -> 0.003" in compared


def test_another_person_can_read_the_run(trained, client):
    (run,) = runs(client)
    index = trained / "data/shards/train/index.json"
    assert run.data.tags["data.sha256"] == files.sha256(index)
    tags = run.data.tags
    assert {"precision", "precision.reason", "processes", "model.sha256"} <= tags.keys()
    assert re.fullmatch("[0-9a-f]{40}", tags["mlflow.source.git.commit"])
    assert tags["mlflow.source.name"] == "stages/train.py"
    description = tags["mlflow.note.content"]
    assert description.startswith("tiny-model (from scratch), trained on 200 images") and "| accuracy " in description
    environment = json.loads(Path(client.download_artifacts(run.info.run_id, "environment.json")).read_text())
    assert {"processor", "git.dirty", "version.torch", "threads"} <= environment.keys()
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert [(used.dataset.name, used.tags[0].value) for used in run.inputs.dataset_inputs] == [("digits", "train")]
    logged = {
        item.path
        for item in [*client.list_artifacts(run.info.run_id), *client.list_artifacts(run.info.run_id, "evaluate")]
    }
    assert {"report.md", "evaluate/mistakes.png", "evaluate/predictions.csv"} <= logged


@pytest.mark.full
def test_two_queue_workers_make_one_store_in_the_repository(project):
    for path in project.glob("mlflow.db*"):
        path.unlink()
    command(project, "dvc", "exp", "run", "--queue", "-S", "training.learning_rate=2e-3,3e-3")
    start_queue(project, 2)
    status = queue_ended(project, 2)
    command(project, "dvc", "queue", "stop", ok=False)
    found = runs(MlflowClient(f"sqlite:///{project / 'mlflow.db'}"))
    assert sorted(run.data.params["training.learning_rate"] for run in found) == ["0.002", "0.003"]
    for run in found:
        assert run.info.run_name in status  # named after the experiment
        assert run.info.status == "FINISHED" and {"test_accuracy", "onnx_agreement"} <= run.data.metrics.keys()


@pytest.mark.full
def test_four_queued_experiments_share_a_server(project, server):
    address, start, _ = server
    start()
    rates = ["1e-3", "2e-3", "3e-3", "4e-3"]
    command(project, "dvc", "exp", "run", "--queue", "-S", f"training.learning_rate={','.join(rates)}")
    # Workers have the environment of `queue start`, not that of `exp run --queue`.
    start_queue(project, 2, MLFLOW_TRACKING_URI=address)
    queue_ended(project, len(rates))
    command(project, "dvc", "queue", "stop", ok=False)
    found = runs(MlflowClient(address))
    assert sorted(run.data.params["training.learning_rate"] for run in found) == [f"0.00{n}" for n in range(1, 5)]
    assert len({run.info.run_name for run in found}) == len(rates)
    for run in found:
        assert run.info.status == "FINISHED" and {"test_accuracy", "onnx_agreement"} <= run.data.metrics.keys()


# ---------------------------------------------------------------- servers that are slow, old, or away for a moment


def client_of(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def test_an_epoch_that_was_lost_is_sent_with_the_next(project, monkeypatch, capsys):
    log, send = tracker("busy"), MlflowClient.log_batch
    lost = iter([False, True, False, False])

    def busy(self, run_id, metrics=(), *rest, **words):
        if metrics and next(lost):
            raise ConnectionError("429 Too Many Requests")
        return send(self, run_id, metrics, *rest, **words)

    monkeypatch.setattr(MlflowClient, "log_batch", busy)
    for epoch in range(3):
        log.log_epoch(epoch, {"train_loss": 1.0 / (epoch + 1)})
    history = client_of(project).get_metric_history(log.run_id, "train_loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert capsys.readouterr().err.count("warning: MLflow: logging failed: 429") == 1


def test_a_server_that_is_away_at_the_start_gets_the_run_when_it_is_back(project, monkeypatch):
    connect, away = connection.connect, [True]

    def try_to_connect(settings):
        if away:
            raise ConnectionError("refused")
        return connect(settings)

    monkeypatch.setattr(connection, "connect", try_to_connect)
    log = tracker("away")
    log.log_epoch(0, {"train_loss": 1.0})
    away.clear()
    for epoch in (1, 2):
        log.log_epoch(epoch, {"train_loss": 1.0})
    log.finish({"val_loss": 1.0, "val_accuracy": 0.5, "best_epoch": 0}, "3" * 64)
    client = client_of(project)
    assert client.get_run(log.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(log.run_id, "train_loss")) == 3


def test_after_several_failures_fewer_epochs_try(project, monkeypatch, capsys):
    monkeypatch.setattr(connection, "connect", lambda _: (_ for _ in ()).throw(ConnectionError("refused")))
    log = tracker("silent")
    for epoch in range(15):
        log.log_epoch(epoch, {"train_loss": 1.0})
    assert capsys.readouterr().err.count("warning: MLflow") == 5  # at the start, and after 0, 0, 1, 3 and 7 epochs


def test_uploads_have_time_and_a_failed_one_costs_only_itself(project, monkeypatch, capsys):
    upload, given = MlflowClient.log_artifact, {}

    def slow(self, run_id, path, *rest):
        given[Path(path).name] = tuple(os.environ[f"MLFLOW_HTTP_REQUEST_{name}"] for name in ("TIMEOUT", "MAX_RETRIES"))
        if path == "params.yaml":
            raise TimeoutError("Read timed out. (read timeout=120)")
        return upload(self, run_id, path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", slow)
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    paths = [Path("params.yaml"), Path("dvc.yaml")]
    add_to_model_run(config.load().mlflow, "4" * 64, {"test_accuracy": 0.5}, paths)
    assert given == dict.fromkeys(("params.yaml", "dvc.yaml"), ("120", "2"))
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == before == "4"
    assert "warning: MLflow: uploading params.yaml failed: Read timed out" in capsys.readouterr().err
    (run,) = [run for run in runs(client_of(project)) if run.data.tags["model.sha256"] == "4" * 64]
    assert [item.path for item in client_of(project).list_artifacts(run.info.run_id)] == ["dvc.yaml"]
    assert run.info.status == "FINISHED" and run.data.metrics == {"test_accuracy": 0.5}


def test_a_run_is_finished_whatever_happens_to_its_model(project, monkeypatch, capsys):
    def fails(*_, **__):
        raise TimeoutError("Read timed out.")

    monkeypatch.setattr(mlflow.onnx, "log_model", fails)
    add_model(config.load().mlflow, "5" * 64, Path("models/export/model.onnx"))
    (run,) = [run for run in runs(client_of(project)) if run.data.tags["model.sha256"] == "5" * 64]
    assert run.info.status == "FINISHED" and "Read timed out" in capsys.readouterr().err


def test_sync_makes_good_everything_that_a_server_missed(project, trained):
    """A store that was away in all stages: the run, its series, images, report and model."""
    for path in project.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree("mlruns")
    weights = files.sha256("models/checkpoint/model.safetensors")
    run_id = sync(config.load(), weights, Path("metrics"), Path("models/export/model.onnx"))
    assert sync(config.load(), weights, Path("metrics"), Path("models/export/model.onnx")) == run_id
    client, (whole,) = client_of(project), runs(client_of(trained))
    run = client.get_run(run_id)
    measured = {name for name in whole.data.metrics if not name.startswith("images_per")}
    assert run.data.metrics.keys() == measured and run.data.params == whole.data.params
    for folder in ("", "evaluate", "export", "report"):
        kept = [{item.path for item in one.list_artifacts(id_, folder)} for one, id_ in
                ((client, run_id), (client_of(trained), whole.info.run_id))]  # fmt: skip
        # What train alone knows cannot be had again.
        assert kept[0] == kept[1] - {"environment.json", "seconds.json"}, folder
    (registered,) = client.search_model_versions("name = 'image-classifier'")
    assert registered.run_id == run_id
    assert_same_series(client, run_id, project)


def test_sync_replaces_what_is_of_an_earlier_evaluate_or_export(project):
    weights, first = files.sha256("models/checkpoint/model.safetensors"), Path("models/export/model.onnx")
    run_id = sync(config.load(), weights, Path("metrics"), first)
    path = project / "metrics/evaluate/metrics.json"
    again = read(path) | {"accuracy": 0.5}
    path.unlink()
    files.write_json(path, again)
    other = onnx_with_another_name(first, project / "other.onnx")
    for _ in range(2):
        assert sync(config.load(), weights, Path("metrics"), other) == run_id
    client = client_of(project)
    assert client.get_run(run_id).data.metrics["test_accuracy"] == 0.5
    assert read(Path(client.download_artifacts(run_id, "evaluate/metrics.json")))["accuracy"] == 0.5
    newest, *before = client.search_model_versions("name = 'image-classifier'")
    assert len(before) == 1 and newest.tags["onnx_sha256"] == files.sha256(other)


def onnx_with_another_name(path: Path, to: Path) -> Path:
    """The same network in another file."""
    model = onnx.load(path)
    model.graph.name = "another"
    onnx.save(model, to)
    return to


def test_an_old_server_without_logged_models_gets_the_model_as_an_artifact(project, monkeypatch):
    def unknown(*_, **__):
        raise MlflowException("API request to /api/2.0/mlflow/logged-models failed", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(mlflow.onnx, "log_model", unknown)
    add_model(config.load().mlflow, "6" * 64, Path("models/export/model.onnx"))
    client = client_of(project)
    (run,) = [run for run in runs(client) if run.data.tags["model.sha256"] == "6" * 64]
    assert "model/MLmodel" in {item.path for item in client.list_artifacts(run.info.run_id, "model")}
    loaded = mlflow.pyfunc.load_model("models:/image-classifier@champion")
    assert loaded.metadata.run_id == run.info.run_id or loaded.predict


# ---------------------------------------------------------------- the registered model


def champion(project: Path, name: str = "image-classifier") -> str:
    return client_of(project).get_model_version_by_alias(name, "champion").run_id


def test_only_the_workspace_moves_the_champion(project, tmp_path, monkeypatch):
    model, settings = (project / "models/export/model.onnx").resolve(), config.load().mlflow
    before = champion(project)
    queued = tmp_path / "queued"
    queued.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(queued)
        add_to_model_run(settings, "7" * 64, {"test_accuracy": 0.31}, [])
        add_model(settings, "7" * 64, model)
    client = client_of(project)
    assert len(client.search_model_versions("name = 'image-classifier'")) == 2
    assert champion(project) == before
    assert promote(settings, "7" * 64) == ("image-classifier", "2")
    assert client.get_run(champion(project)).data.metrics["test_accuracy"] == 0.31
    with pytest.raises(UserError, match="no version of image-classifier has the weights of models/export: run sync"):
        promote(settings, "8" * 64)


@pytest.mark.parametrize(
    ("experiment", "chosen", "expected"),
    [
        ("team/cats", None, "team-cats"),
        ("/Shared/pets: v1", None, "Shared-pets-v1"),
        ("image-classifier", None, "image-classifier"),
        ("//", None, "image-classifier"),
        ("cats", "main.vision.cats", "main.vision.cats"),
    ],
)
def test_a_registered_model_has_a_name_that_every_registry_allows(project, change, experiment, chosen, expected):
    change({"mlflow": {"experiment_name": experiment, "model_name": chosen}})
    add_model(config.load().mlflow, "9" * 64, Path("models/export/model.onnx"))
    assert register.model_name(config.load().mlflow) == expected
    assert client_of(project).get_model_version_by_alias(expected, "champion")


def test_each_project_has_a_registered_model_of_its_own(project, monkeypatch):
    """Also where the experiment is named in the environment."""
    before = champion(project)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cats-bad")
    add_model(config.load().mlflow, "a" * 64, Path("models/export/model.onnx"))
    assert champion(project) == before != champion(project, "cats-bad")


def test_the_models_page_has_the_figures_of_the_epoch_that_ships(trained, client):
    (run,) = runs(client)
    (model,) = client.search_logged_models([run.info.experiment_id])
    shown = {metric.key: metric.value for metric in model.metrics}
    best = json.loads((trained / "metrics/train/metrics.json").read_text())
    test = json.loads((trained / "metrics/evaluate/metrics.json").read_text())
    assert best["best_epoch"] > 0  # or this would show nothing
    assert shown["val_accuracy"] == pytest.approx(best["val_accuracy"])
    assert shown["test_accuracy"] == pytest.approx(test["accuracy"])
    assert {metric.dataset_name for metric in model.metrics if metric.key == "test_accuracy"} == {"digits"}


# ---------------------------------------------------------------- where the store is


def test_a_port_that_is_taken_is_one_line(project):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken by another program.*choose one with --port"):
            ui.main(port)


def test_an_address_with_options_is_a_database_too(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}?timeout=60")
    add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5}, [])
    (run,) = runs(MlflowClient(f"sqlite:///{tmp_path / 'other.db'}"))
    assert run.data.metrics == {"test_accuracy": 0.5}


@pytest.mark.parametrize("by", ["params", "environment"])
def test_a_relative_database_is_one_in_the_repository(project, tmp_path, monkeypatch, by):
    if by == "params":
        edit_params(project, {"mlflow": {"tracking_uri": "sqlite:///runs/all.db"}})
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/all.db")
    settings = config.load().mlflow
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.chdir(tmp_path)
    add_to_model_run(settings, "0" * 64, {"test_accuracy": 0.5}, [project / "params.yaml"])
    assert (project / "runs/all.db").is_file() and list((project / "runs/mlruns").rglob("params.yaml"))
    assert not list(tmp_path.glob("*.db")) and not (tmp_path / "mlruns").exists()


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it(project, capsys):
    client = client_of(project)
    found = client.get_experiment_by_name("image-classifier")
    client.delete_experiment(found.experiment_id)
    add_to_model_run(config.load().mlflow, "0" * 64, {}, [])
    told = capsys.readouterr().err
    assert "the experiment image-classifier was deleted: run `mlflow experiments restore --experiment-id 1`" in told


def test_the_ui_opens_the_store_that_the_runs_are_in(project, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: started.append(words) or Finished)
    assert command_line.main(["ui"]) == 0
    assert started[0][-1] == f"sqlite:///{project / 'mlflow.db'}" and "127.0.0.1" in started[0]
    assert capsys.readouterr().out.endswith("/runs?workflowType=machine_learning\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hushed@mlflow.example.org")
    assert command_line.main(["ui"]) == 0 and len(started) == 1
    assert capsys.readouterr().out == "MLflow runs elsewhere: open https://mlflow.example.org\n"


def test_the_ui_opens_also_where_the_experiment_was_deleted(project, monkeypatch, capsys):
    client = client_of(project)
    client.delete_experiment(client.get_experiment_by_name("image-classifier").experiment_id)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: Finished)
    assert command_line.main(["ui"]) == 0 and "was deleted" in capsys.readouterr().out


class Finished:
    returncode = 0
