"""Training state outside DVC's outs, so that a killed run goes on from its last finished epoch.

DVC deletes a stage's outs before it runs the stage, so the state lives in `.resume/<fingerprint>`
of the real repository. Any other input has another fingerprint and starts afresh.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from filelock import AcquireReturnProxy, Timeout

from image_classifier.core import files, provenance, runtime
from image_classifier.core.config import Config
from image_classifier.core.errors import UserError, first_line, is_out_of_memory
from image_classifier.images.shards import ShardReader
from image_classifier.model.numerics import Compute
from image_classifier.tracking.server.connection import TRAINING
from image_classifier.training.distributed import Group
from image_classifier.training.trainer import Trainer

# What does not decide the model, or, like the number of processes, is checked when a training goes on.
NO_PART: dict[str, Any] = {"evaluation": True, "export": True, "mlflow": True, "training": {"num_processes"}}


def inputs(config: Config, compute: Compute, *data: ShardReader) -> dict[str, Any]:
    """What decides the trained model on any machine: params, `data` (the splits), pretrained weights, number format."""
    return {
        "params": config.model_dump(mode="json", exclude=NO_PART),
        "data": [split.sha256 for split in data],
        "pretrained": [files.sha256(path) for path in sorted(Path(config.model.name).glob("*")) if path.is_file()],
        "precision": f"{compute.name} on {compute.device}",
    }


def fingerprint(config: Config, compute: Compute, *data: ShardReader) -> str:
    """A hash of all that decides the trained model: the inputs, code, versions, threads, processor."""
    facts = inputs(config, compute, *data) | {
        "threads": config.num_threads or runtime.cpus(),
        "instructions": {name: os.environ.get(name) for name in runtime.PORTABLE},
        "processor": provenance.processor(),
    }
    return provenance.fingerprint("train", facts, ["torch", "torchvision", "transformers", "timm", "numpy"])


class State:
    """The state of one training in `folder`; whoever works on it holds `lock`, which `take` waits for."""

    def __init__(self, key: str):
        self.folder = files.repository().resolve() / ".resume" / key
        self.lock = files.lock(self.folder / "lock", timeout=5)  # others take it for an instant, to see if it is free

    def take(self, group: Group) -> AcquireReturnProxy:
        """Hold `lock` in a with statement; a queued experiment that trains the same model is waited for.

        Raises Timeout: another run holds the lock, and the other processes of `group` would time out waiting.
        """
        try:
            return self.lock.acquire()
        except Timeout:
            if group.count > 1:
                raise
        print(f"train: waiting for another run that trains the same model: {self.lock.lock_file}", flush=True)
        held = self.lock.acquire(timeout=-1)
        if not self._kept():  # that run has finished: this one gets an MLflow run of its own
            files.remove(self.folder / TRAINING)
        return held

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Keep tensors and plain values, replacing what was kept before; the file's name holds its checksum."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        path = self.folder / f"epoch-{epoch:05d}-{digest}.pt"
        with files.atomic(path) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())
        for older in set(self._kept()) - {path}:
            older.unlink()

    def restore(self, trainer: Trainer) -> None:
        """Let a trainer go on from what `save` kept last, and say so; leave it as it is if there is nothing whole."""
        if kept := self.load(trainer.group):
            trainer.load_state_dict(kept)
            print(f"train: resuming after epoch {len(trainer.history)}, kept in {self.folder}")

    def follow(self, trainer: Trainer) -> None:
        """Train from there beside the first process, which logs and saves for all."""
        self.restore(trainer)
        for _ in trainer.epochs():
            pass

    def load(self, group: Group) -> dict[str, Any] | None:
        """What `save` kept last, read by the first process for all; None if there is nothing that is whole."""
        content = group.send(self._read() if group.first else b"")
        if not content:
            return None
        try:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # torch refuses pickles, and whatever is no archive of tensors
            if is_out_of_memory(error):
                raise
            raise UserError(f"{self.folder} holds no state of a training ({first_line(error)}): remove it") from None

    def forget(self) -> None:
        """Remove what was kept; the MLflow run's id stays, should DVC be killed before it notes that train ended."""
        for path in (*self._kept(), self.folder / "lock"):
            path.unlink()

    def _read(self) -> bytes:
        """The last state; nothing if there is none, or if it is damaged, which is said."""
        if not (kept := self._kept()):
            return b""
        content = kept[-1].read_bytes()
        if hashlib.sha256(content).hexdigest() != kept[-1].stem.rpartition("-")[2]:
            print(f"warning: {kept[-1]} is damaged, its checksum is not that of its name: starting afresh")
            kept[-1].unlink()
            return b""
        return content

    def _kept(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.pt"))
