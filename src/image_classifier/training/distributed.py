"""Training shared by several processes: torchrun starts them, torch.distributed joins them.

Each batch is that of a single process, dealt out to the processes; their gradients are averaged by
DistributedDataParallel, weighted so that every image counts the same.
"""

import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from image_classifier.core import files, runtime
from image_classifier.core.config import Training
from image_classifier.core.errors import UserError

MEETING = "TRAINING_MEETING"  # in the environment: where the processes of one machine find each other
# A process keeps an error to itself for this long: what all of them find the first one says, and if another is gone
# its message is the one to read. Meanwhile torchrun ends this one, which takes a while on a busy machine.
SILENT = 30  # seconds
LEAST = 32  # images of a batch that are worth a GPU of their own
# How long a process waits for another that says nothing, such as one whose network was cut off: gloo's default. One
# that computes the features of a frozen backbone on a slower machine, or logs to a slow server, is silent for minutes.
LOST_AFTER = timedelta(minutes=30)
# In the messages of the two backends when they wait for a process that is gone.
LOST = ("gloo", "NCCL", "Connection", "connection", "pair closure", "Timed out")
# Our own messages say what failed; torchrun's box of 30 lines around them would not add to it.
logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Group:
    """This process, number `index` from 0, among the `count` that train one model."""

    index: int = 0
    count: int = 1
    here: int = 1  # of them on this machine

    @property
    def first(self) -> bool:
        """Whether this is the one that logs, saves and prints."""
        return self.index == 0

    def join(self, network: nn.Module) -> nn.Module:
        """The network's forward pass, after which gradients are averaged over all processes."""
        if self.count == 1:
            return network
        if dist.get_backend() == "nccl":
            synchronize_batch_norm(network)
        elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            print("train: batch norm sees each process's own part of a batch: on CPUs torch cannot synchronize it")
        # Each process keeps its own running statistics; `average` brings them together.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.11 gave one of the options a new name
            # Some networks have parameters that no output depends on, such as a pooling head.
            return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True)

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
                f"process {self.index} has other params, shards, weights or precision than the first one: bring its "
                "machine to the same commit, data/shards and models/pretrained, and set training.precision"
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


def synchronize_batch_norm(network: nn.Module) -> None:
    """Let batch norm see the whole batch, in place; timm's layers hold their activation too, which torch would drop."""
    if hasattr(network, "timm_model"):
        from timm.layers import convert_sync_batchnorm

        convert_sync_batchnorm(network)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)


def launch(stage: str, training: Training, device: torch.device) -> bool:
    """Run the stage in several processes, where `training.num_processes` asks for it; return whether that was done.

    `auto` asks for as many as there are GPUs, but for no more than leave each process `LEAST` images of a batch.
    torchrun starts the stage anew in each of them, which then comes here again and is told to go on by itself.

    Raises UserError: there are not as many GPUs, or a process failed.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    wanted = training.num_processes
    count = max(1, min(gpus, training.batch_size // LEAST)) if wanted == "auto" else int(wanted)
    if count == 1 or dist.is_torchelastic_launched():
        return False
    if gpus and count > gpus:
        raise UserError(f"training.num_processes = {count}, but there are {gpus} GPUs: set it to auto")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, runtime.cpus() // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")  # seconds until those still there are killed
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # this machine alone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or torch says that no parameter went unused
    on = f" on {count} of {gpus} GPUs" if gpus else ""
    print(f"{stage}: {count} processes share each batch{on}", flush=True)
    words = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--nproc-per-node", str(count)]
    try:
        # They meet in files: a store of torch's own would listen to the whole network, and unpickle what it gets.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with tempfile.TemporaryDirectory() as folder:
            os.environ[MEETING] = f"file://{folder}/processes"
            words += ["--rdzv-endpoint", f"{folder}/agent", "-m", f"stages.{stage}"]
            torchrun.run(torchrun.parse_args(words))
        return True
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed, as it says above"
        raise UserError(f"process {rank} of {count} {how}: rerun to resume after the last finished epoch") from None
    except SignalException:
        raise KeyboardInterrupt from None


@contextmanager
def joined(stage: str, device: torch.device) -> Iterator[Group]:
    """This process among those that torchrun started, of which only the first one prints; alone if it did not.

    Raises filelock.Timeout: the stage runs already. A killed DVC leaves its stage running.
    """
    index = int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0
    with files.lock(f".resume/{stage}{index or ''}.lock"):
        if not dist.is_torchelastic_launched():
            yield Group()
            return
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        group = Group(index, *(int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")))
        backend = "nccl" if device.type == "cuda" else "gloo"
        meeting = os.environ.get(MEETING, "env://")  # on several machines torchrun's own
        with _told_once(group):
            dist.init_process_group(backend, meeting, LOST_AFTER, group.count, group.index)
            if not group.first or device.type == "cuda":
                # Python's own handler would wait for the answer of a process that is dead.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            yield group
        dist.destroy_process_group()


@contextmanager
def _told_once(group: Group) -> Iterator[None]:
    """Let only the first process print, and say first what went wrong."""
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if group.first else nowhere):
            yield
    except (UserError, OSError):
        if not group.first:
            time.sleep(SILENT)
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SILENT)
        raise UserError("another process of this training has stopped: see the messages on its machine") from None
