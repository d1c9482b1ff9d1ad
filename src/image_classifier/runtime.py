"""What decides a run besides its inputs: seeds, threads, allocator; and the record of it."""

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from image_classifier import files

# glibc mallopt(3) parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def repository() -> Path:
    """The real repository: DVC runs temp and queued experiments in a copy and names it in DVC_ROOT."""
    return Path(os.environ.get("DVC_ROOT", "."))


def configure(num_threads: int | None, processes: int = 1) -> None:
    """Fix the number of CPU threads (null = one per usable core), ask for deterministic kernels, keep freed memory.

    `processes` of this machine share its cores.
    """
    torch.set_num_threads(num_threads or max(1, len(os.sched_getaffinity(0)) // processes))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic kernels by default also fill all new memory with NaN: a tenth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False  # may choose another algorithm in every run
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA
    if platform.libc_ver()[0] == "glibc":
        # Each training step frees and asks again for gigabytes of activations. By default every such
        # block is a fresh mmap whose pages the kernel must zero: half of a step's time on two cores.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def derive_seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers, such as (seed, epoch, step): no random state to keep."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def fingerprint(facts: dict[str, Any], packages: list[str]) -> str:
    """A hash of what decides the result of unfinished work: `facts`, this library's code, Python and packages."""
    folders = Path(__file__).parent, Path("stages")
    paths = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    code = {f"{path.parent.name}/{path.name}": files.sha256(path) for path in paths}
    everything = [facts, code, sys.version, *map(version, packages)]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def environment() -> dict[str, str]:
    """Facts about this run that no out may hold: interpreter, packages, processor, threads, commit."""
    packages = ["torch", "torchvision", "transformers", "safetensors", "datasets", "numpy", "pillow", "onnx"]
    packages += ["onnxscript", "onnxruntime", "scikit-learn", "scipy", "pandas", "matplotlib", "jinja2", "tabulate"]
    packages += ["dvclive"]
    # Without what a running pipeline changes: DVC removes metrics before it makes them again.
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!metrics", ":!dvc.lock")
    return {
        "python": f"{platform.python_version()} {sys.executable}",
        "platform": platform.platform(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "deterministic": "where torch can" if torch.are_deterministic_algorithms_enabled() else "no",
        "git.commit": _git("rev-parse", "HEAD"),
        "git.dirty": str(bool(changed)).lower(),
        **{f"version.{name}": version(name) for name in packages},
    }


def processor() -> str:
    """The GPU, if there is one, and the CPU with its generation: another may round differently, under the same name."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()  # of the first core
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    generation = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([*gpu, facts.get("model name", platform.machine()), *generation])


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return result.stdout.strip()
