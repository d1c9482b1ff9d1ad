"""How this process computes: threads, deterministic kernels, the allocator, seeds."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from image_classifier.core.errors import UserError

# What makes processors of several generations compute alike. Each of torch's libraries chooses its kernels, and with
# them how it adds up, when it first computes.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",  # the only branch that Intel's and AMD's processors both take; AVX2 means Intel's alone
    "MKL_DYNAMIC": "FALSE",  # or MKL may take fewer threads than it is told
}
# glibc mallopt(3) parameters.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


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


def configure(num_threads: int | None, processes: int = 1, portable: bool = False) -> None:
    """Fix the number of CPU threads (null = one per usable CPU), ask for deterministic kernels, keep freed memory.

    To be called before torch computes anything. `processes` of this machine share its CPUs.

    Raises UserError: `portable` is asked for, and torch does not compute with AVX2.
    """
    if portable:
        os.environ.update(PORTABLE)
        if (kernels := torch.backends.cpu.get_cpu_capability()) != "AVX2":
            raise UserError(f"portable = true, but torch computes with {kernels} here instead of AVX2: set it to false")
    torch.set_num_threads(num_threads or max(1, cpus() // processes))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic kernels by default also fill all new memory with NaN: a tenth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # may choose another algorithm in every run
    if torch.cuda.is_available():  # whose faster attention adds up in another order in every run
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process take memory that it has freed again, instead of having the kernel zero new pages each time.

    A training step frees and asks again for gigabytes of activations, and each photo for its pixels, several times. By
    default every such block is a fresh mmap: half of a step's time on two cores.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def derive_seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers, such as (seed, epoch, step): no random state to keep."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
