"""Is everything fit to run? One line a check, each failure with its remedy."""

import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.specifiers import SpecifierSet

from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.preparation import folders
from image_classifier.preparation.columns import class_names

PACKAGES = ["dvc", "dvclive", "mlflow", "torch", "torchvision", "transformers", "datasets", "onnxruntime"]
LOCKED = Path("requirements.txt")


def main() -> int:
    """Run every check; return 1 if one failed."""
    checks, failed = [_python, _repository, _params, _model], 0
    for check in checks:
        name = check.__name__.strip("_")
        try:
            print(f"ok    {name:<12} {check()}")
        except UserError as error:
            print(f"FAIL  {name:<12} {error}")
            failed += 1
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


def _python() -> str:
    try:
        supported = metadata("image-classifier")["Requires-Python"]
        if platform.python_version() not in SpecifierSet(supported, prereleases=True):
            raise UserError(f"Python {platform.python_version()} at {sys.executable}: use one that is {supported}")
        pins = re.findall(r"^([\w.-]+)==([\w.]+)", LOCKED.read_text(), re.M) if LOCKED.is_file() else []
        odd = [(name, pin) for name, pin in pins if name in PACKAGES and version(name).partition("+")[0] != pin]
        if odd:
            told = ", ".join(f"{name} {version(name)} (locked: {pin})" for name, pin in odd)
            raise UserError(f"{told}: results depend on the version, so run `make setup`")
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        return f"Python {platform.python_version()}, {sys.executable}: {packages}"
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `make setup`") from None


def _repository() -> str:
    commit = _output("git", "rev-parse", "--short", "HEAD", remedy="run `make setup`, which makes a first commit")
    _output("git", "var", "GIT_COMMITTER_IDENT", remedy="set user.name and user.email; experiments need them")
    changed = _output("git", "status", "--porcelain", remedy="run `git status`").splitlines()
    folders.check(Path("data/raw"))  # DVC itself would fail without naming the file
    _output(sys.executable, "-m", "dvc", "stage", "list", "-q", remedy="fix dvc.yaml, or run this from a clone")
    unfinished = [path.parent for path in Path(".resume").glob("*/epoch-*.pt")]
    size = sum(path.stat().st_size for folder in unfinished for path in folder.iterdir()) / 1e6
    kept = f"; .resume keeps {len(unfinished)} unfinished trainings ({size:.0f} MB): delete what you will not resume"
    told = f"commit {commit}, {len(changed)} changed files, a DVC pipeline; `dvc status` says what is out of date"
    return told + (kept if unfinished else "")


def _params() -> str:
    from image_classifier.model import numerics

    params = config.load()
    chosen = numerics.resolve(params.training.device, params.training.precision)
    return f"valid; training computes in {chosen.name} on {chosen.device}: {chosen.reason}"


def _model() -> str:
    from image_classifier.preparation import sources
    from image_classifier.training.build import build_network
    from image_classifier.training.sizes import check_sizes

    params = config.load()
    size, local = params.data.image_size, params.data.source == "digits" or params.data.source.startswith(sources.LOCAL)
    names, found = ["one", "another"], f"{params.data.source} is on the hub and was not looked at"
    if local:
        with tempfile.TemporaryDirectory() as scratch:
            source = sources.load(params.data, Path(scratch))
            names = class_names(source["train"])
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in source.items())
            found = f"{counts} images of {len(names)} classes"
    network = build_network(params.model, names, size, params.seed).eval()
    check_sizes(network, {size: 2})
    count = sum(parameter.numel() for parameter in network.parameters())
    return f"{found}; {count:,} parameters, one forward pass at {size} px"


def _output(*command: str, remedy: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed") from None
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]
        raise UserError(f"{reason}: {remedy}")
    return result.stdout.strip()
