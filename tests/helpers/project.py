"""A project of its own for a test: the real stages and library, tiny params; and running commands in it."""

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from image_classifier.core import files

ROOT = Path(__file__).resolve().parent.parent.parent
NO_NETWORK = ROOT / "tests/helpers/no_network"  # on PYTHONPATH: whoever opens a connection is noted and refused
TRACKED = [
    "stages",
    "src",
    "recipes",
    ".dvc/config",
    ".dvc/plots",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
]
# params.yaml as it was committed: whoever changes theirs still has tests that pass.
DEFAULTS = ROOT / "tests/helpers/params.yaml"
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
    """A repository with the real stages and library, and the tiny params, whatever the workspace's own are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        elif source.exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    shutil.copy(DEFAULTS, folder / "params.yaml")
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


def start_queue(project: Path, jobs: int, **environment: str) -> None:
    """Start queue workers. They keep its output open, so that whoever reads it waits until they end."""
    words = ["dvc", "queue", "start", "--jobs", str(jobs)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words, cwd=project, env={**os.environ, **environment}, check=True, timeout=HANGS, **quiet)


def queue_ended(project: Path, count: int) -> str:
    """Wait for this many queued experiments, all of which must have succeeded; what `dvc queue status` says then."""

    def ended() -> bool:
        time.sleep(2)
        said.append(command(project, "dvc", "queue", "status").stdout)
        return said[-1].count("Success") + said[-1].count("Failed") == count

    said: list[str] = []
    wait_for(ended)
    assert said[-1].count("Success") == count, said[-1]
    return said[-1]


TRIED: Counter[str] = Counter()  # malformed inputs, by what was given them
KILLED: Counter[str] = Counter()  # whole pipelines, by the stage that was running


def read(path: Path) -> dict[str, Any]:
    """A JSON file of the project."""
    return files.read_json(path, "")


def series(folder: Path, name: str) -> list[float]:
    """One of the series that train logged."""
    return pd.read_csv(folder / f"metrics/train/plots/metrics/{name}.tsv", sep="\t")[name].tolist()
