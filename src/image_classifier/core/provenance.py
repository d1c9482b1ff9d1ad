"""What a result was made with: code, packages, processor, commit."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML, YAMLError

from image_classifier.core import files
from image_classifier.core.errors import UserError, first_line

ROOT = Path(__file__).resolve().parents[3]  # of the checkout that this library belongs to
# Instruction sets that choose another kernel, and with it other last digits. A hypervisor may hide some.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimdhp", "sve", "sve2", "bf16", "i8mm")


def fingerprint(stage: str, facts: dict[str, Any], packages: list[str], root: Path = ROOT) -> str:
    """A hash of what decides the result of a stage's unfinished work: `facts`, its code, Python and packages.

    Raises UserError: dvc.yaml in `root`, which lists the stage's code, cannot be read.
    """
    everything = [facts, _code(stage, root), sys.version, *map(version, packages)]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _code(stage: str, root: Path) -> dict[str, str]:
    """The SHA-256 of every file of code that dvc.yaml lists for a stage; a test compares the list with its imports."""
    try:
        deps = YAML(typ="safe", pure=True).load(root / "dvc.yaml")["stages"][stage]["deps"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"dvc.yaml has no stage {stage} to be read ({first_line(error)}): restore it from git"
        ) from None
    listed = [root / dep for dep in deps if dep.startswith(("src/", "stages/"))]
    paths = [path for dep in listed for path in (sorted(dep.rglob("*.py")) if dep.is_dir() else [dep])]
    return {path.relative_to(root).as_posix(): files.sha256(path) for path in paths}


def environment() -> dict[str, str]:
    """Facts about this run that no out may hold: interpreter, packages, processor, threads, commit."""
    packages = ["torch", "torchvision", "transformers", "safetensors", "datasets", "numpy", "pillow", "onnx"]
    packages += ["onnxscript", "onnxruntime", "scikit-learn", "scipy", "pandas", "matplotlib", "jinja2", "tabulate"]
    packages += ["dvclive", "timm"]
    # Without what a running pipeline changes: DVC removes metrics before it makes them again.
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    return {
        "python": platform.python_version(),  # without its path, which may hold a user's name
        "platform": platform.platform(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "deterministic": "where torch can" if torch.are_deterministic_algorithms_enabled() else "no",
        "git.commit": _output("git", "rev-parse", "HEAD"),
        "git.dirty": str(bool(changed)).lower(),
        **{f"version.{name}": version(name) for name in packages},
    }


def processor(root: Path = Path("/")) -> str:
    """The GPU, if there is one, and the CPU with its generation: another may round differently, under the same name.

    x86 tells family and model, arm64 implementer and part; macOS, which has no `proc` in `root`, a name.
    """
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    cpuinfo = root / "proc/cpuinfo"
    if not cpuinfo.is_file():
        return ", ".join([*gpu, _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()])
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines()  # of the first core
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    generation = ("cpu family", "model", "CPU implementer", "CPU part", "CPU variant")
    able = set((facts.get("flags") or facts.get("Features") or "").split())
    parts = [f"{name} {facts[name]}" for name in generation if name in facts]
    parts.append(" ".join(name for name in INSTRUCTIONS if name in able))
    return ", ".join([*gpu, facts.get("model name", platform.machine()), *filter(None, parts)])


def _output(*command: str) -> str:
    """What a program prints; nothing if it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
