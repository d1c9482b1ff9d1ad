"""One tiny trained pipeline for the whole run; stages are called in this process where they can be."""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach out
os.environ["OMP_NUM_THREADS"] = "1"  # `make test` runs several tests at a time
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME"):
    os.environ.pop(name, None)

TRACKED = ["stages", "src", ".dvc/config", ".dvc/plots", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"]
# MobileViT with all its kinds of layers, small enough for a test: 32 px, 0.1 million parameters.
TINY_MODEL = """{
  "model_type": "mobilevit", "image_size": 32, "hidden_sizes": [16, 24, 32],
  "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64], "expand_ratio": 2.0
}"""
TINY_PARAMS = {
    "num_threads": 1,
    "data": {"image_size": 64, "subset_size": 200},
    "model": {"name": "tiny-model"},
    "training": {
        "precision": "fp32",
        "num_epochs": 3,
        "batch_size": 16,
        "resolution_schedule": [32, 64],
        "optimizer": "adamw",
        "learning_rate": 0.01,
        "batch_norm_images": 100,
    },
}


HANGS = 1800  # seconds after which a test gives up waiting: a guard against hanging, never a measure of speed
# Root may override file modes and users may not: what a user may do is tried without that right.
AS_A_USER = ["setpriv", *(f"--{kind}=-dac_override,-dac_read_search,-fowner" for kind in ("bounding-set", "inh-caps"))]
AS_A_USER = AS_A_USER if os.geteuid() == 0 else []

TRIED: Counter[str] = Counter()  # malformed inputs, by what was given them
KILLED: Counter[str] = Counter()  # whole pipelines, by the stage that was running


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


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait until `condition` holds, as long as `process` lives."""
    started = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, "the process ended too early"
        assert time.monotonic() - started < HANGS
        time.sleep(0.05)


def edit_params(folder: Path, changes: dict) -> None:
    """Change keys of a params.yaml, section by section, and keep the rest."""
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for section, change in changes.items():
        if isinstance(change, dict):
            values.setdefault(section, {}).update(change)
        else:
            values[section] = change
    yaml.dump(values, folder / "params.yaml")


def command(folder: Path, *words: str, ok: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a folder."""
    result = subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=HANGS
    )
    assert not ok or result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result


def new_project(folder: Path) -> Path:
    """A repository with the real stages and library, and the tiny params."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    for name in ("data/raw", "models/pretrained"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".gitkeep").touch()
    (folder / "tiny-model").mkdir()
    (folder / "tiny-model/config.json").write_text(TINY_MODEL)
    edit_params(folder, TINY_PARAMS)
    command(folder, "git", "init", "-q")
    command(folder, "git", "config", "user.name", "test")
    command(folder, "git", "config", "user.email", "test@localhost")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-qm", "first")
    return folder


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
            refused["PYTHONPATH"] = str(ROOT / "tests/no_network")
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
