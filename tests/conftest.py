"""One tiny trained pipeline for the whole run; stages are called in this process where they can be."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach out
os.environ["OMP_NUM_THREADS"] = "1"  # `make test` runs several tests at a time
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
    os.environ.pop(name, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after `nohup make test &`: no test's program would end
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.helpers.project import HANGS, KILLED, NO_NETWORK, TRIED, command, edit_params, new_project


def pytest_sessionfinish(session) -> None:
    """In a worker of pytest-xdist: hand the counts to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = [dict(TRIED), dict(KILLED)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Add up the counts of a worker that has ended."""
    for counts, found in zip((TRIED, KILLED), getattr(node, "workeroutput", {}).get("counts", ()), strict=False):
        counts.update(found)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many malformed inputs were tried and how many kills survived."""
    for what, counts in (("malformed inputs tried", TRIED), ("kills survived", KILLED)):
        if counts:
            each = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts))
            terminalreporter.write_line(f"{what}: {counts.total():,} ({each})")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need the trained pipeline, which `make check` leaves out; they come first.

    So one worker trains it while another begins with those that do not need it.
    """
    for item in items:
        if "trained" in getattr(item, "fixturenames", ()):
            item.add_marker("pipeline")
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture(autouse=True)
def a_fresh_process(monkeypatch) -> None:
    """What a test leaves in this process is no part of the next one: MLflow's address, torch's threads."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if "torch" in sys.modules:  # a stage that ran in this process has set its own number of threads
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id) -> Path:
    """The tiny pipeline after a real `dvc repro` without a network, committed. Read it, do not write in it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent  # the workers of pytest-xdist have one between them
    folder = shared / "trained/project"
    with FileLock(shared / "trained.lock", timeout=HANGS):
        if not (shared / "trained/done").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            new_project(folder)
            # The network is refused, and no setting keeps anyone from trying it.
            refused = {"HF_HUB_OFFLINE": "0", "NETWORK_LOG": str(folder.parent / "network.log")}
            refused["PYTHONPATH"] = str(NO_NETWORK)
            command(folder, "dvc", "repro", **refused)
            command(folder, "git", "add", "-A")
            command(folder, "git", "commit", "-qm", "trained")
            (shared / "trained/done").touch()
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of the trained pipeline to change, as working folder."""
    folder = tmp_path / "project"
    shutil.copytree(trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def change(project: Path) -> Callable[[dict], None]:
    """Change keys of the project's params.yaml."""
    return lambda changes: edit_params(project, changes)
