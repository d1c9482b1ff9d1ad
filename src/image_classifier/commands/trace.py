"""`image-classifier trace`: what a training computes, tensor by tensor, to be compared with another machine.

The params and shards of the workspace are trained anew, in memory. A hash is kept of every layer's
output and every gradient until the first step of the optimizer, of all weights after each epoch, and
of the probabilities on test. `image-classifier verify --against` makes the same and names the first
that differs.
"""

import hashlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from image_classifier.core import config, files, provenance, runtime
from image_classifier.core.errors import UserError
from image_classifier.images.shards import ShardReader
from image_classifier.model import numerics
from image_classifier.model.batches import batches
from image_classifier.model.inference import predict_in_fp32, with_progress
from image_classifier.training import features, resume
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.trainer import Trainer

SPLITS = ("train", "val", "test")
Tensors = list[list[str]]  # [where it was computed, hash], in order


class Differs(Exception):
    """The next tensor is not what the other machine has; its text says where it was computed."""


def main(path: Path) -> int:
    """Write the trace of this machine; a file that was there is replaced."""
    files.write_json(path, found := trace(config.load()))
    print(f"trace: {path}: {len(found['tensors'])} tensors; elsewhere: image-classifier verify --against {path.name}")
    return 0


def trace(params: config.Config, expected: Tensors | None = None) -> dict[str, Any]:
    """What describes the machine, `environment`; the `params` that decide the model; and `tensors`.

    Raises Differs: a tensor is not the `expected` one.
    Raises UserError: there are no shards, or training.use_compile leaves no layers to look at.
    """
    if params.training.use_compile:
        raise UserError("a compiled network shows no layers: set training.use_compile to false for a trace")
    found = {"environment": environment(params), "params": deciding(params)}
    compute = numerics.resolve(params.training.device, params.training.precision)
    train, val, test = splits = [ShardReader(f"data/shards/{name}") for name in SPLITS]
    tensors: Tensors = []

    def note(where: str, digest: str) -> None:
        if expected is not None and expected[len(tensors) : len(tensors) + 1] != [[where, digest[:16]]]:
            raise Differs(where)
        tensors.append([where, digest[:16]])

    def keep(where: str, tensor: Tensor) -> None:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        note(where, hashlib.sha256(values.numpy().tobytes()).hexdigest())

    for name, split in zip(SPLITS, splits, strict=True):
        note(f"prepare, data/shards/{name}", split.sha256)
    network = build_network(params.model, train.class_names, train.resize.size, params.seed)
    normalize = input_normalization(params.data.normalization, params.model)
    parts = features.set_up(network, normalize, compute, params.training, train, val)
    trainer = Trainer(*parts[:2], compute, params.training, params.seed, *parts[2:])
    for name, tensor in trainer.network.state_dict().items():
        keep(f"train, before the first step, {name}", tensor)
    _watch_first_step(trainer, keep)
    for epoch, _ in enumerate(trainer.epochs(), 1):
        for name, tensor in trainer.network.state_dict().items():
            keep(f"train, after epoch {epoch}, {name}", tensor)
    shown = with_progress(batches(test, params.evaluation.batch_size), len(test), "test")
    _, probabilities = predict_in_fp32(network, normalize, shown, params.training.device)
    keep("evaluate, probabilities on test", torch.from_numpy(probabilities))
    return found | {"tensors": tensors}


def _watch_first_step(trainer: Trainer, keep: Callable[[str, Tensor], None]) -> None:
    """Keep what each layer returns, and each gradient, until the optimizer has taken a step."""
    handles: list[Any] = []

    def stop(*_: Any) -> None:
        for handle in handles:
            handle.remove()

    def watch_output(name: str, layer: nn.Module) -> None:
        where = f"train, epoch 1, step 1, output of {name} ({type(layer).__name__})"
        handles.append(layer.register_forward_hook(lambda _, __, output: keep(where, output)))

    def watch_gradient(name: str, weight: nn.Parameter) -> None:
        where = f"train, epoch 1, step 1, gradient of {name}"
        handles.append(weight.register_post_accumulate_grad_hook(lambda weight: keep(where, weight.grad)))

    for name, layer in trainer.network.named_modules():
        if not any(layer.children()):
            watch_output(name, layer)
    for name, weight in trainer.network.named_parameters():
        if weight.requires_grad:
            watch_gradient(name, weight)
    handles.append(trainer.stepper.optimizer.register_step_post_hook(stop))


def deciding(params: config.Config) -> dict[str, str]:
    """The params that decide the model, such as `training.num_epochs`."""
    values = pd.json_normalize(params.model_dump(mode="json", exclude=resume.NO_PART)).to_dict("records")[0]
    return {str(name): str(value) for name, value in values.items()}


def environment(params: config.Config) -> dict[str, str]:
    """What may change the last digits: versions, processor, threads, precision. Threads are set as the stages do."""
    runtime.configure(params.num_threads, portable=params.portable)
    chosen = numerics.resolve(params.training.device, params.training.precision)
    facts = provenance.environment()
    kept = {name: value for name, value in facts.items() if name.startswith(("version.", "processor", "threads"))}
    return kept | {"precision": f"{chosen.name} on {chosen.device}", "python": platform.python_version()}
