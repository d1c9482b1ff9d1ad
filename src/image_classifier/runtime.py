"""What decides a run besides its inputs: seeds, threads, allocator; and the record of it."""

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from image_classifier import files

# glibc mallopt(3) parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# Instruction sets that choose another kernel, and with it other last digits. A hypervisor may hide some.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimdhp", "sve", "sve2", "bf16", "i8mm")


def repository() -> Path:
    """The real repository: DVC runs temp and queued experiments in a copy and names it in DVC_ROOT."""
    return Path(os.environ.get("DVC_ROOT", "."))


def cpus(root: Path = Path("/")) -> int:
    """How many CPUs this process may use: those it may run on, or fewer where its container has a quota.

    Hyper-threads count. A quota of 2.5 CPUs is 2: a third thread would be stopped half of the time, and the others
    wait for it. `root` holds `proc` and `sys`.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no such call
        count = os.cpu_count() or 1
    return max(1, min([count, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs that each control group around this process may use; see cgroups(7)."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        number, controllers, group = line.split(":", 2)
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else "cpu")
        # The quota of every group above counts too. In a container the path may not exist, and the root is its own.
        for folder in (mount / group.strip("/"), *(mount / group.strip("/")).parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                if number == "0":  # version 2
                    quota, period = (folder / "cpu.max").read_text().split()
                else:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if quota != "max" and int(quota) > 0:  # version 1 has -1 for no limit
                    yield int(quota) / int(period)
            if folder == mount:
                break


def configure(num_threads: int | None, processes: int = 1) -> None:
    """Fix the number of CPU threads (null = one per usable CPU), ask for deterministic kernels, keep freed memory.

    `processes` of this machine share its CPUs.
    """
    torch.set_num_threads(num_threads or max(1, cpus() // processes))
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
