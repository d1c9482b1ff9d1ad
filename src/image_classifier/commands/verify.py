"""`image-classifier verify`: does the committed state, run twice from nothing in two places, leave the same outs?

The second run has another folder, time zone, locale and PYTHONHASHSEED. That they agree is the
gate. Whether they also agree with the committed dvc.lock is reported: another processor or torch
may round differently, and environment.json, which `--record` writes beside the lock once the bytes
are the same, says what those bytes were made with.

`--against FILE` trains here instead, and names the first tensor that differs from a trace made on another machine.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from image_classifier.commands.trace import Differs, deciding, environment, machine, trace
from image_classifier.core import config, files
from image_classifier.core.errors import UserError
from image_classifier.core.lock import inputs_of_run, stages_of

ENVIRONMENT = Path("environment.json")
COPIED = "data/raw", "models/pretrained"  # what git does not hold
# Python takes text and file names for ASCII there, where nothing else is said.
ELSEWHERE = {"TZ": "Asia/Kathmandu", "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONHASHSEED": "12345"}


def main(record: bool, against: Path | None) -> int:
    """Run the pipeline twice, compare, and say what differs first; return 1 if the two runs differ."""
    if against:
        return compare(against)
    with tempfile.TemporaryDirectory() as folder:
        committed = Path(folder) / "committed"
        clone(committed)
        if not (committed / "dvc.lock").is_file():
            raise UserError("dvc.lock is not committed: run `dvc repro` and commit it")
        params, lock, given = config.load(committed / "params.yaml"), outs(committed), inputs(committed)
        is_ascii = all(str(path).isascii() for name in COPIED for path in Path(name).rglob("*"))
        first = rerun(Path(folder) / "here", {})
        second = rerun(Path(folder) / "some/where/else", ELSEWHERE | ({} if is_ascii else {"PYTHONUTF8": "1"}))
        if where := difference(outs(first), outs(second)):
            print(f"verify: NOT identical: {where[0]}: {file_that_differs(first / where[1], second / where[1])}")
            return 1
        print(f"verify: identical: {len(outs(first))} outs, made twice from nothing in two places")
        where, given = difference(lock, outs(first)), dict(inputs(first).items() ^ given.items())
    here = environment(params)
    if where is None:
        print("verify: and identical to the committed dvc.lock")
        if record:
            files.write_json(ENVIRONMENT, here)
            print(f"verify: {ENVIRONMENT} written")
        return 0
    there = files.read_json(ENVIRONMENT, "") if ENVIRONMENT.is_file() else {}
    print(f"verify: the committed dvc.lock has other bytes, first in {where[0]}: {where[1]}")
    if given:
        print(f"verify: other content here than dvc.lock was committed with: {', '.join(sorted(given))}")
    print(f"verify: what differs: {changes(there, here) or 'nothing that environment.json knows of'}")
    if record:
        print(f"verify: {ENVIRONMENT} not written")
    return 0


def compare(path: Path) -> int:
    """Train here as another machine did, up to the first tensor that differs, and name it; return 1 if there is one.

    Raises UserError: `path` is not a trace, or was made with other params.
    """
    remedy = "write one with `image-classifier trace`"
    there = files.read_json(path, remedy)
    kinds = {"environment": dict, "params": dict, "tensors": list}
    is_trace = isinstance(there, dict) and all(isinstance(there.get(name), kind) for name, kind in kinds.items())
    if not is_trace or not all(isinstance(entry, list) and len(entry) == 2 for entry in there["tensors"]):
        raise UserError(f"{path} is not a trace: {remedy}")
    params = config.load()
    if differing := changes(there["params"], deciding(params)):
        raise UserError(f"{path} was made with other params: {differing}")
    known = changes(there["environment"], machine(params)) or "none of the recorded facts"
    try:
        count = len(trace(params, there["tensors"])["tensors"])
    except Differs as first:
        print(f"verify: first difference: {first}\nverify: the machines differ in: {known}")
        return 1
    print(f"verify: the same {count} tensors as in {path}")
    return 0


def changes(there: dict[str, str], here: dict[str, str]) -> str:
    """The facts that differ between two machines, or two params."""
    names = [name for name in there | here if there.get(name) != here.get(name)]
    return "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in names)


def clone(folder: Path) -> None:
    """Clone the committed state. Raises UserError: git refuses, and has printed why."""
    if subprocess.run(["git", "clone", "-q", Path.cwd(), folder], check=False).returncode:
        raise UserError(
            "git could not clone this folder (see its message above): run verify at the root of a git repository"
        )


def rerun(folder: Path, surroundings: dict[str, str]) -> Path:
    """Clone the committed state, give it the raw images and weights, and run the pipeline from nothing."""
    clone(folder)
    for name in COPIED:
        shutil.copytree(name, folder / name, dirs_exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_"))}
    kept["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"  # whatever params.yaml says
    print(f"verify: running the pipeline in {folder}", flush=True)
    # By force: what is in git, such as metrics, and in a cache of the user's would not be made again.
    done = subprocess.run(
        ["dvc", "repro", "--force"], cwd=folder, env=kept | surroundings, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise UserError("the pipeline failed in a clone of the committed state; its messages are above")
    return folder


def outs(folder: Path) -> dict[tuple[str, str], str]:
    """(stage, path) of every out and metrics file, in the order of the pipeline, and its hash."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    names = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]
    return {(name, out["path"]): out["md5"] for name in names for out in stages.get(name, {"outs": []})["outs"]}


def inputs(folder: Path) -> dict[str, str]:
    """The hash of the data and the weights that a clone's pipeline was run with, which git does not hold."""
    found = inputs_of_run(stages_of((folder / "dvc.lock").read_text(), "dvc.lock"))
    return {name: hash_ for name, hash_ in found.items() if name.startswith(COPIED)}


def difference(ours: dict[tuple[str, str], str], theirs: dict[tuple[str, str], str]) -> tuple[str, str] | None:
    """The first out whose hash differs, or that one side lacks."""
    return next((out for out in ours | theirs if ours.get(out) != theirs.get(out)), None)


def file_that_differs(first: Path, second: Path) -> Path:
    """The first file that differs below two outs, or that one of them lacks."""
    if first.is_file():
        return first
    names = sorted({path.relative_to(root) for root in (first, second) for path in root.rglob("*") if path.is_file()})
    sums = [{name: files.sha256(root / name) for name in names if (root / name).is_file()} for root in (first, second)]
    return next(first / name for name in names if sums[0].get(name) != sums[1].get(name))
