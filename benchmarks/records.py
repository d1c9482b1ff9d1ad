"""What was measured: records/NAME.json is the source of every table in RESULTS.md, which is rendered from them.

python -m benchmarks.records    # render RESULTS.md from results.md and the records
"""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2

from image_classifier.core import files, provenance, runtime

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks/records"
TEMPLATE, PAGE = ROOT / "benchmarks/results.md", ROOT / "benchmarks/RESULTS.md"


@dataclass(frozen=True)
class Record:
    """One table: what was run, on what, and the cells as they are shown."""

    title: str
    command: str  # as typed in the root of the repository
    machine: str
    versions: dict[str, str]
    commit: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    @property
    def module(self) -> str | None:
        """The benchmark that made it, a module in this folder; None where other commands did."""
        found = re.match(r"python -m benchmarks\.(\w+)", self.command)
        return found and found[1]

    def as_markdown(self) -> str:
        """The table under its title and the conditions that it holds for."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = [f"### {self.title}", "", f"`{self.command}`; {self.machine}, {versions}, commit {self.commit}.", ""]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def publish(
    name: str | None,
    title: str,
    command: str,
    packages: Sequence[str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str = "",
) -> None:
    """Print a table; with a name, keep it as that record and render RESULTS.md again.

    `packages` are those whose versions matter. A record is of a commit: with changes in the working tree none is kept.
    """
    facts = provenance.environment()
    found = Record(
        title,
        command,
        f"{runtime.cpus()} cores of {facts['processor']}",
        {"Python": platform.python_version()} | {package: version(package) for package in packages},
        facts["git.commit"][:7],
        list(columns),
        [list(row) for row in rows],
        note,
    )
    print(found.as_markdown())
    if name is not None:
        if changes():
            sys.exit(f"not kept as records/{name}.json: commit the changes in the working tree, and measure again")
        files.write_json(FOLDER / f"{name}.json", asdict(found))
        PAGE.write_text(render())


def changes() -> str:
    """What differs from the commit, other than records of benchmarks that ran before this one."""
    but = [":!benchmarks/records", ":!benchmarks/RESULTS.md"]
    words = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", *but]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def load(name: str) -> Record:
    """A record by its name."""
    return Record(**json.loads((FOLDER / f"{name}.json").read_text()))


def render() -> str:
    """RESULTS.md, from its template and the records that this names."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    known = {path.stem for path in FOLDER.glob("*.json")}
    return template.render(has=known.__contains__, table=lambda name: load(name).as_markdown(), cell=cell)


def cell(name: str, row: str, column: str, second: str | None = None) -> str:
    """One figure of a record: under `column`, in the row that begins with `row` (and then with `second`)."""
    found = load(name)
    begin = [row] if second is None else [row, second]
    return next(cells for cells in found.rows if cells[: len(begin)] == begin)[found.columns.index(column)]


if __name__ == "__main__":
    PAGE.write_text(render())
