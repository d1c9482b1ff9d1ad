"""What the real runs left in MLflow, and that MLflow never costs a run."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlparse

import pytest
from conftest import command
from mlflow import MlflowClient

from image_classifier import config, tracking
from image_classifier.files import sha256
from stages import evaluate, train


@pytest.fixture
def client(trained) -> MlflowClient:
    return MlflowClient(f"sqlite:///{trained / 'mlflow.db'}")


def runs(client: MlflowClient) -> list:
    experiment = client.get_experiment_by_name("image-classifier")
    return client.search_runs([experiment.experiment_id])


def test_one_run_holds_the_model_from_params_to_test_metrics(trained, client):
    (run,) = runs(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["model.sha256"] == sha256(trained / "models/checkpoint/model.safetensors")
    params = run.data.params
    assert params["training.learning_rate"] == params["learning_rate"] == "0.01"
    assert params["num_classes"] == "10" and params["seed"] == "0" and params["data.source"] == "digits"
    measured = json.loads((trained / "metrics/evaluate/metrics.json").read_text())
    for name in ("accuracy", "precision", "recall", "f1_score"):
        assert run.data.metrics[f"test_{name}"] == pytest.approx(measured[name])
    assert run.data.metrics["onnx_agreement"] == 1.0
    assert run.data.metrics["images_per_second"] > 0 and run.data.metrics["seconds.forward and backward"] > 0


def test_mlflow_and_dvclive_hold_the_same_series(trained, client):
    (run,) = runs(client)
    for path in (trained / "metrics/train/plots/metrics").glob("*.tsv"):
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        history = client.get_metric_history(run.info.run_id, path.stem)
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


def test_a_model_without_a_run_gets_one(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    tracking.add_to_model_run(config.load().mlflow, "0" * 64, {"test_accuracy": 0.5})
    tracking.add_to_model_run(config.load().mlflow, "0" * 64, {"test_loss": 1.5})
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("another").experiment_id])
    assert run.data.metrics == {"test_accuracy": 0.5, "test_loss": 1.5}


def test_a_run_that_fails_does_not_stay_running(project):
    def fail():
        with tracking.Tracker("metrics/train", config.load(), 10, {"test": "fails"}):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = [run for run in runs(client) if run.data.tags.get("test") == "fails"]
    assert run.info.status == "FAILED"


def test_a_temp_experiment_runs_its_own_code_and_lands_in_the_repositorys_store(project):
    module = project / "stages/train.py"
    module.write_text(module.read_text().replace('print(f"train: {sys.executable}")', 'print("train: changed code")'))
    result = command(project, "dvc", "exp", "run", "--temp", "-n", "temp-run", "-S", "training.learning_rate=3e-3")
    assert "changed code" in result.stdout
    assert "3e-3" not in (project / "params.yaml").read_text()
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = [run for run in runs(client) if run.info.run_name == "temp-run"]
    assert run.data.params["learning_rate"] == "0.003"
    assert "test_accuracy" in run.data.metrics and "onnx_agreement" in run.data.metrics
    shown = json.loads(command(project, "dvc", "exp", "show", "--json").stdout)
    assert "temp-run" in json.dumps(shown)


@pytest.mark.full
def test_a_queued_experiment_runs_and_lands_in_the_repositorys_store(project):
    command(project, "dvc", "exp", "run", "--queue", "-n", "queued", "-S", "training.learning_rate=2e-3")
    command(project, "dvc", "queue", "start")
    for _ in range(60):
        status = command(project, "dvc", "queue", "status").stdout
        if "Success" in status or "Failed" in status:
            break
        command(project, "sleep", "4")
    assert "Success" in status, status
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    (run,) = [run for run in runs(client) if run.info.run_name == "queued"]
    assert "test_accuracy" in run.data.metrics
    command(project, "dvc", "queue", "stop", ok=False)
