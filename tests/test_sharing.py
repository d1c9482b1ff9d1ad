"""A DVC remote: what one has made, another has without making it again."""

import shutil
from pathlib import Path

import pytest
from conftest import command

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
