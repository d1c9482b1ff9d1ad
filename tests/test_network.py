"""Nothing leaves the machine: no telemetry, no look for updates."""

import sys

import pytest
from conftest import ROOT, command


def test_a_whole_run_asks_for_no_network(trained):
    assert not (trained.parent / "network.log").exists()


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1"])
def test_the_guard_sees_who_asks(tmp_path, host):
    guard = {"PYTHONPATH": str(ROOT / "tests/no_network"), "NETWORK_LOG": str(tmp_path / "log")}
    code = f"import socket; socket.create_connection(('{host}', 80))"
    assert "no network in this test" in command(tmp_path, sys.executable, "-c", code, ok=False, **guard).stderr
    assert (tmp_path / "log").read_text() == f"{host}\n"


def test_telemetry_is_off(trained, monkeypatch):
    for name in ("MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    names = "os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['HF_HUB_DISABLE_TELEMETRY']"
    found = command(trained, sys.executable, "-c", f"import image_classifier, os; print({names})").stdout.split()
    assert found == ["true", "1"]
    assert command(trained, "dvc", "config", "core.analytics").stdout.strip() == "false"
