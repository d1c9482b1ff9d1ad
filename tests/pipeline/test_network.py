"""Nothing leaves the machine: no telemetry, no look for updates."""

import sys

import pytest

from image_classifier.commands.recipe import apply
from tests.helpers.project import DEFAULTS, NO_NETWORK, ROOT, command


def test_a_whole_run_asks_for_no_network(trained):
    assert not (trained.parent / "network.log").exists()


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1"])
def test_the_guard_sees_who_asks(tmp_path, host):
    guard = {"PYTHONPATH": str(NO_NETWORK), "NETWORK_LOG": str(tmp_path / "log")}
    code = f"import socket; socket.create_connection(('{host}', 80))"
    assert "no network in this test" in command(tmp_path, sys.executable, "-c", code, ok=False, **guard).stderr
    assert (tmp_path / "log").read_text() == f"{host}\n"


def test_without_the_hub_there_is_one_line_and_how_to_fetch_it(tmp_path):
    guard = {"PYTHONPATH": str(NO_NETWORK), "NETWORK_LOG": str(tmp_path / "log")}
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    apply("cifar10", tmp_path / "params.yaml")
    words = sys.executable, "-m", "stages.prepare"
    guard |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "NO_WAITING": "1"}
    result = command(tmp_path, *words, ok=False, **guard)
    (line,) = result.stderr.splitlines()
    assert (
        line.startswith("error: data.source = uoft-cs/cifar10 at ") and "run `hf download --repo-type dataset" in line
    )
    assert set((tmp_path / "log").read_text().split()) == {"huggingface.co"}
    assert "looking for uoft-cs/cifar10 in the cache and on the Hugging Face hub" in result.stdout


def test_the_default_model_is_built_without_asking(tmp_path):
    guard = {"PYTHONPATH": str(NO_NETWORK), "NETWORK_LOG": str(tmp_path / "log")}
    build = (
        "from image_classifier.core import config; from image_classifier.training.build import build_network; "
        "build_network(config.load().model, ['a', 'b'], 160, 0)"
    )
    command(ROOT, sys.executable, "-c", build, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "cache"), **guard)
    assert not (tmp_path / "log").exists()


def test_telemetry_is_off(trained, monkeypatch):
    for name in ("MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    names = "os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY']"
    found = command(trained, sys.executable, "-c", f"import image_classifier, os; print({names})").stdout.split()
    assert found == ["true", "1"]
    assert command(trained, "dvc", "config", "core.analytics").stdout.strip() == "false"
