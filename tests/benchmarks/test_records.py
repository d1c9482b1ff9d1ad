"""RESULTS.md is what its records say."""

import importlib
import re

import pytest

from benchmarks import records

NAMES = sorted(path.stem for path in records.FOLDER.glob("*.json"))


def test_the_page_is_rendered_from_the_records():
    assert records.PAGE.read_text() == records.render(), "python -m benchmarks.records renders it"


@pytest.mark.parametrize("name", NAMES)
def test_a_record_is_whole_and_on_the_page(name):
    found = records.load(name)
    assert found.as_markdown() in records.PAGE.read_text()
    assert found.rows and all(len(row) == len(found.columns) for row in found.rows)
    assert found.command and found.machine and found.versions
    assert all(re.fullmatch("[0-9a-f]{7}", commit) for commit in found.commit.split(", "))


@pytest.mark.parametrize("name", [name for name in NAMES if records.load(name).module])
def test_a_record_has_the_columns_that_its_benchmark_writes(name):
    found = records.load(name)
    module = importlib.import_module(f"benchmarks.{found.module}")
    own = {"balance": "BALANCE_COLUMNS", "finetuned-seeds": "SEEDS_COLUMNS", "growth": "GROWTH_COLUMNS"}
    columns = own.get(name, "COLUMNS")
    assert tuple(found.columns) == getattr(module, columns)


def test_nothing_is_kept_of_a_working_tree_with_changes(monkeypatch, capsys):
    monkeypatch.setattr(records, "changes", lambda: " M params.yaml\n")
    monkeypatch.setattr(records.files, "write_json", lambda *_: pytest.fail("was kept"))
    with pytest.raises(SystemExit, match=r"not kept as records/some\.json: commit the changes"):
        records.publish("some", "Title", "python -m benchmarks.some", ["torch"], ["a"], [["1"]])
    assert "| a |\n| --- |\n| 1 |" in capsys.readouterr().out
