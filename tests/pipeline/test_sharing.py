"""A DVC remote: what one has made, another has without making it again."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.project import AS_A_USER, command

UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture
def pushed(trained, tmp_path) -> Path:
    """The trained pipeline, pushed to a remote."""
    folder = shutil.copytree(trained, tmp_path / "origin", symlinks=True)
    command(folder, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    command(folder, "git", "commit", "-qam", "remote")
    command(folder, "dvc", "push")
    return folder


def test_a_clone_pulls_and_finds_nothing_to_do(pushed, tmp_path):
    clone = tmp_path / "clone"
    command(tmp_path, "git", "clone", "-q", str(pushed), str(clone))
    command(clone, "dvc", "pull")
    assert UP_TO_DATE in command(clone, "dvc", "repro").stdout
    assert (clone / "models/export/model.onnx").is_file()


def test_a_clone_without_the_data_checks_that_nothing_changed(pushed, tmp_path):
    clone = tmp_path / "clone"
    command(tmp_path, "git", "clone", "-q", str(pushed), str(clone))
    said = command(clone, "dvc", "repro", "--pull", "--allow-missing").stdout
    assert UP_TO_DATE in said and "Running stage" not in said
    assert not (clone / "data/shards/train").exists()


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_an_export_alone_runs_on_read_only_links_into_the_cache(pushed, tmp_path, kind):
    """In the workspace and in a folder of its own, by someone who may not override file modes."""
    clone = tmp_path / "clone"
    command(tmp_path, "git", "clone", "-q", str(pushed), str(clone))
    for name in ("name", "email"):
        command(clone, "git", "config", f"user.{name}", "test@localhost")
    command(clone, "dvc", "config", "--local", "cache.type", kind)
    command(clone, *AS_A_USER, "dvc", "pull")
    assert not (clone / "models/checkpoint/model.safetensors").stat().st_mode & 0o222
    change = ["-S", "export.min_agreement=0.99"]
    if kind == "hardlink":
        done = command(clone, *AS_A_USER, "dvc", "exp", "run", "-n", "again", *change)
    else:
        done = command(clone, *AS_A_USER, "dvc", "exp", "run", "--temp", "-n", "again", *change)
        command(clone, *AS_A_USER, "dvc", "exp", "apply", "again")
    assert "Running stage 'export'" in done.stdout and "Running stage 'train'" not in done.stdout
    assert not (clone / "models/export/model.onnx").stat().st_mode & 0o222
    command(clone, *AS_A_USER, "dvc", "checkout", "--relink")
    assert UP_TO_DATE in command(clone, *AS_A_USER, "dvc", "status").stdout
