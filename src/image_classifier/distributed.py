"""Training shared by several processes: torchrun starts them, torch.distributed joins them.

Each batch is that of a single process, dealt out to the processes; their gradients are averaged by
DistributedDataParallel, weighted so that every picture counts the same.
"""

import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from image_classifier import files, runtime
from image_classifier.errors import UserError

MEETING = "TRAINING_MEETING"  # in the environment: where the processes of one machine find each other
# A process keeps an error to itself for this long: what all of them find the first one says, and if another is gone
# its message is the one to read. Meanwhile torchrun ends this one, which takes a while on a busy machine.
SILENT = 30  # seconds
# Our own messages say what failed; torchrun's box of 30 lines around them would not add to it.
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` from 0, among the `count` that train one model."""

    rank: int = 0
    count: int = 1
    here: int = 1  # of them on this machine

    @property
    def first(self) -> bool:
        """Whether this is the one that logs, saves and prints."""
        return self.rank == 0

    def join(self, network: nn.Module) -> nn.Module:
        """The network's forward pass, after which gradients are averaged over all processes."""
        if self.count == 1:
            return network
        if dist.get_backend() == "nccl":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, of the layers inside
        elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            print("train: batch norm sees each process's own part of a batch: on CPUs torch cannot synchronise it")
        # Each process keeps its own running statistics; `average` brings them together.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a name that torch 2.11 knows it by
            # Some networks have parameters that no output depends on, such as a pooling head.
            options = {"broadcast_buffers": False, "find_unused_parameters": True}
            return nn.parallel.DistributedDataParallel(network, **options)

    def average(self, network: nn.Module) -> None:
        """Make the running statistics of batch norm the mean over all processes."""
        if self.count > 1:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.count

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def collect(self, part: Tensor, rows: np.ndarray, count: int) -> np.ndarray:
        """What all processes have of `count` rows, in one array: `part` are those numbered `rows`."""
        whole = part.new_zeros((count, *part.shape[1:]))
        whole[torch.from_numpy(rows).to(part.device)] = part
        return self.total(whole).cpu().numpy()

    def agree(self, facts: str) -> None:
        """Refuse to train together with a first process of other facts.

        Raises UserError: they differ.
        """
        if self.send(facts.encode()) != facts.encode():
            raise UserError(
                f"process {self.rank} has other params, pictures or precision than the first one: bring its machine to "
                "the same commit and the same data/shards, and set training.precision"
            )

    def send(self, content: bytes) -> bytes:
        """What the first process has, in all of them."""
        if self.count == 1:
            return content
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        length = torch.tensor(len(content), device=device)
        dist.broadcast(length, 0)
        if not int(length):
            return b""
        buffer = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.first:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return buffer.cpu().numpy().tobytes()


def run(stage: str, num_processes: int | str, device: torch.device, work: Callable[[Ranks], None]) -> None:
    """Do the work of a stage in as many processes as `training.num_processes` asks for; none of them twice at once.

    If that is more than this one, torchrun starts the stage anew in each, which comes here again.

    Raises UserError: there are not as many GPUs, or a process failed.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    count = max(1, gpus) if num_processes == "auto" else int(num_processes)
    if count > 1 and not dist.is_torchelastic_launched():
        return _launch(stage, count, gpus)
    rank = os.environ.get("RANK", "0") if dist.is_torchelastic_launched() else "0"
    lock = files.lock(f".resume/{stage}{rank.removeprefix('0')}.lock")
    with lock, joined(device) as ranks:  # a killed DVC leaves its stage running
        work(ranks)


def _launch(stage: str, count: int, gpus: int) -> None:
    if gpus and count > gpus:
        raise UserError(f"training.num_processes = {count}, but there are {gpus} GPUs: set it to auto")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, runtime.cpus() // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")  # seconds until those still there are killed
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # this machine alone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or torch says that no parameter went unused
    print(f"{stage}: {count} processes share each batch", flush=True)
    words = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--nproc-per-node", str(count)]
    try:
        # They meet in files: a store of torch's own would listen to the whole network, and unpickle what it gets.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            os.environ[MEETING] = f"file://{folder}/processes"
            words += ["--rdzv-endpoint", f"{folder}/agent", "-m", f"stages.{stage}"]
            torchrun.run(torchrun.parse_args(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed, as it says above"
        raise UserError(f"process {rank} of {count} {how}: call again to go on after the last finished epoch") from None
    except SignalException:
        raise KeyboardInterrupt from None


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process among those that torchrun started; only the first one prints."""
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    words = {"init_method": os.environ.get(MEETING, "env://")}  # of several machines: torchrun's
    words |= {"rank": ranks.rank, "world_size": ranks.count}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **words)
    if not ranks.first or device.type == "cuda":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's own handler would wait for a dead process's answer
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if ranks.first else nowhere):
            yield ranks
    except (UserError, OSError):
        if not ranks.first:
            time.sleep(SILENT)
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("gloo", "NCCL", "onnection")):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SILENT)
        raise UserError("another process of this training is gone: see its machine's messages") from None
    dist.destroy_process_group()
