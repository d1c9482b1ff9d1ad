"""Is everything fit to run? One line a check, each failure with its remedy."""

import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from image_classifier import config
from image_classifier.errors import UserError

PACKAGES = ["dvc", "dvclive", "mlflow", "torch", "torchvision", "transformers", "datasets", "onnxruntime"]


def main() -> int:
    """Run every check; return 1 if one failed."""
    checks = [_interpreter, _packages, _git, _dvc, _params, _device, _data, _model]
    failed = 0
    for check in checks:
        name = check.__name__.strip("_")
        try:
            print(f"ok    {name:<12} {check()}")
        except UserError as error:
            print(f"FAIL  {name:<12} {error}")
            failed += 1
    print(f"{len(checks) - failed} of {len(checks)} checks passed")
    return 1 if failed else 0


def _interpreter() -> str:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise UserError(f"Python {sys.version.split()[0]} at {sys.executable}: use 3.11 or 3.12")
    return f"Python {sys.version.split()[0]}, {sys.executable}"


def _packages() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    except PackageNotFoundError as error:
        raise UserError(f"{error.name} is not installed: run `make setup`") from None


def _git() -> str:
    commit = _output("git", "rev-parse", "--short", "HEAD", remedy="run `make setup`, which makes a first commit")
    _output("git", "var", "GIT_COMMITTER_IDENT", remedy="set user.name and user.email; experiments need them")
    changed = _output("git", "status", "--porcelain", remedy="run `git status`").splitlines()
    return f"commit {commit}, {len(changed)} changed files"


def _dvc() -> str:
    _output(sys.executable, "-m", "dvc", "stage", "list", "-q", remedy="mend dvc.yaml, or run this from a clone")
    return "the repository and dvc.yaml are readable; `dvc status` says what has changed"


def _params() -> str:
    params = config.load()
    return f"params.yaml is valid: {params.model.name} on {params.data.source} at {params.data.image_size} px"


def _device() -> str:
    from image_classifier import precision

    training = config.load().training
    chosen = precision.resolve(training.device, training.precision)
    return f"{chosen.device}, {chosen.name}: {chosen.reason}"


def _data() -> str:
    source = _source()
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in source.items())
    return f"{counts} pictures of {source['train'].features['label'].num_classes} classes"


@cache
def _source():
    from image_classifier import sources

    with tempfile.TemporaryDirectory() as scratch:
        return sources.load(config.load().data, Path(scratch))


def _model() -> str:
    import torch

    from image_classifier import models

    params = config.load()
    size = params.data.image_size
    classes = _source()["train"].features["label"].names
    network = models.build(params.model, classes, size, params.seed).eval()
    with torch.inference_mode():
        network(pixel_values=torch.zeros(1, 3, size, size))
    return f"{sum(p.numel() for p in network.parameters()):,} parameters, one forward pass at {size} px"


def _output(*command: str, remedy: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]
        raise UserError(f"{reason}: {remedy}")
    return result.stdout.strip()
