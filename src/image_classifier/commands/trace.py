"""`image-classifier trace`: hash what a training computes, tensor by tensor, to compare two machines.

Trains the params and shards of the workspace in memory, in one process. It records a hash of every
layer's output and every gradient up to the first optimizer step, of all weights after each epoch,
and of the probabilities on test. `image-classifier verify --against` repeats this and names the
first tensor that differs.
"""

import hashlib
import os
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
from image_classifier.training import features
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.trainer import Trainer

SPLITS = ("train", "val", "test")
# Params that no tensor depends on; and the device, since `machine` records the one that was used.
LEFT_OUT: dict[str, Any] = {"export": True, "mlflow": True, "training": {"device", "num_processes"}}
Tensors = list[list[str]]  # [where it was computed, hash], in order
Keep = Callable[[str, Tensor], None]  # called with where it was computed


class Differs(Exception):
    """A tensor is not what the other machine has; the text says where it was computed."""


def main(path: Path) -> int:
    """Write the trace of this machine, replacing a file that is there.

    Raises UserError: `path` cannot be written.
    """
    files.check_writable(path)
    found = trace(config.load())
    files.write_json(path, found)
    print(f"trace: {path}: {len(found['tensors'])} tensors")
    print(f"on another machine: image-classifier verify --against {path.name}")
    return 0


def trace(params: config.Config, expected: Tensors | None = None) -> dict[str, Any]:
    """What describes the machine, `environment`; the `params` that decide the tensors; and `tensors`.

    Raises Differs: a tensor is not the `expected` one.
    Raises UserError: there are no shards, or the network is compiled, which hides its layers.
    """
    found = {"environment": machine(params), "params": deciding(params)}
    tensors: Tensors = []

    def note(where: str, digest: str) -> None:
        if expected is not None:
            there = expected[len(tensors)] if len(tensors) < len(expected) else ["its end", ""]
            if there[0] != where:
                raise Differs(f"{where}, where the trace has {there[0]}")
            if there[1] != digest[:16]:
                raise Differs(where)
        tensors.append([where, digest[:16]])

    def keep(where: str, tensor: Tensor) -> None:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        note(where, hashlib.sha256(values.numpy().tobytes()).hexdigest())

    splits = [ShardReader(f"data/shards/{name}") for name in SPLITS]
    for name, split in zip(SPLITS, splits, strict=True):
        note(f"prepare, data/shards/{name}", split.sha256)
    _compute(params, splits, keep)
    if expected is not None and len(expected) > len(tensors):
        raise Differs(f"{expected[len(tensors)][0]}, which is not computed here")
    return found | {"tensors": tensors}


def _compute(params: config.Config, splits: list[ShardReader], keep: Keep) -> None:
    """Train and evaluate as the stages do, and hand each tensor to `keep`."""
    train, val, test = splits
    compute = numerics.resolve(params.training.device, params.training.precision)
    if params.training.use_compile and compute.device.type == "cuda":
        raise UserError("training.use_compile = true hides the layers from a trace: set it to false")
    network = build_network(params.model, train.class_names, train.resize.size, params.seed)
    normalize = input_normalization(params.data.normalization, params.model)
    _keep_all(keep, "train, before the first step", network)  # the backbone too, where a head alone is trained
    parts = features.set_up(network, normalize, compute, params.training, train, val)
    trainer = Trainer(*parts[:2], compute, params.training, params.seed, *parts[2:])
    if trainer.network is not network:
        for name, split in zip(SPLITS, parts[2:], strict=False):
            keep(f"train, features of the frozen backbone on {name}", split.images[0])
    _watch_first_step(trainer, keep)
    for epoch, _ in enumerate(trainer.epochs(), 1):
        _keep_all(keep, f"train, after epoch {epoch}", trainer.network)
        if trainer.stepper.averaged is not None:
            _keep_all(keep, f"train, after epoch {epoch}, moving average", trainer.stepper.averaged)
    shown = with_progress(batches(test, params.evaluation.batch_size), len(test), "test")
    _, probabilities = predict_in_fp32(network, normalize, shown, params.training.device)
    keep("evaluate, probabilities on test", torch.from_numpy(probabilities))


def _keep_all(keep: Keep, when: str, network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        keep(f"{when}, {name}", tensor)


def _watch_first_step(trainer: Trainer, keep: Keep) -> None:
    """Keep what the network is given, what each layer returns, and each gradient, until the optimizer takes a step."""
    handles: list[Any] = []
    step = "train, epoch 1, step 1"

    def watch_input(_: nn.Module, __: tuple, inputs: dict[str, Any]) -> None:
        keep(f"{step}, input of the network", inputs["pixel_values"])

    def watch_output(name: str, layer: nn.Module) -> None:
        where = f"{step}, output of {name} ({type(layer).__name__})"
        hook = layer.register_forward_hook
        handles.append(hook(lambda _, __, output: keep(where, output) if isinstance(output, Tensor) else None))

    def watch_gradient(name: str, weight: nn.Parameter) -> None:
        where = f"{step}, gradient of {name}"
        handles.append(weight.register_post_accumulate_grad_hook(lambda weight: keep(where, weight.grad)))

    def stop(*_: Any) -> None:
        for handle in handles:
            handle.remove()

    # Without its input, a difference in augmentation or rescaling would be blamed on the first layer.
    handles.append(trainer.network.register_forward_pre_hook(watch_input, with_kwargs=True))
    for name, layer in trainer.network.named_modules():
        if not any(layer.children()):
            watch_output(name, layer)
    for name, weight in trainer.network.named_parameters():
        if weight.requires_grad:
            watch_gradient(name, weight)
    handles.append(trainer.stepper.optimizer.register_step_post_hook(stop))


def deciding(params: config.Config) -> dict[str, str]:
    """The params that decide the tensors, such as `training.num_epochs`."""
    values = pd.json_normalize(params.model_dump(mode="json", exclude=LEFT_OUT)).to_dict("records")[0]
    return {str(name): str(value) for name, value in values.items()}


def machine(params: config.Config) -> dict[str, str]:
    """The environment, the commit, and the variables that choose instruction sets."""
    found = environment(params)  # which sets the variables where params.portable asks for them
    commit = {name: value for name, value in provenance.environment().items() if name.startswith("git.")}
    return found | commit | {name: os.environ[name] for name in runtime.PORTABLE if name in os.environ}


def environment(params: config.Config) -> dict[str, str]:
    """What may change the last digits: versions, processor, threads, precision. Threads are set as the stages do."""
    runtime.configure(params.num_threads, portable=params.portable)
    chosen = numerics.resolve(params.training.device, params.training.precision)
    facts = provenance.environment()
    kept = {name: value for name, value in facts.items() if name.startswith(("version.", "processor", "threads"))}
    return kept | {"precision": f"{chosen.name} on {chosen.device}", "python": platform.python_version()}
