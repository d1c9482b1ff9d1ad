"""train: data/shards/{train,val} -> models/checkpoint, metrics/train."""

import sys
from pathlib import Path

from image_classifier.core import config, files, provenance, runtime
from image_classifier.core.entry import exit_with, took
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint, numerics
from image_classifier.training import distributed, features, resume
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.timing import SAVING
from image_classifier.training.tracker import Tracker
from image_classifier.training.trainer import Trainer, in_words

CHECKPOINT = Path("models/checkpoint")


def main() -> None:
    """Train, in as many processes as training.num_processes asks for."""
    params = config.load()
    compute = numerics.resolve(params.training.device, params.training.precision)
    if not distributed.launch("train", params.training, compute.device):
        with distributed.joined("train", compute.device) as group:
            fit(params, compute, group)


def fit(params: config.Config, compute: numerics.Compute, group: distributed.Group) -> None:
    """Keep the best epoch on val, and log every epoch to DVCLive and MLflow."""
    print(f"train: {sys.executable}\ntrain: {compute.name} on {compute.device}: {compute.reason}")
    runtime.configure(params.num_threads, group.here, params.portable)
    train, val = ShardReader("data/shards/train"), ShardReader("data/shards/val")
    group.agree(repr(resume.inputs(params, compute, train, val)))
    network = build_network(params.model, train.class_names, train.resize.size, params.seed)
    normalize = input_normalization(params.data.normalization, params.model)
    parts = features.set_up(network, normalize, compute, params.training, train, val, group.first)
    trainer = Trainer(*parts[:2], compute, params.training, params.seed, *parts[2:], group)
    state, clock = resume.State(resume.fingerprint(params, compute, train, val)), trainer.clock
    if not group.first:
        return state.follow(trainer)  # the first process logs and saves for all
    tags = provenance.environment() | compute.facts() | {"processes": str(group.count), "data.sha256": train.sha256}
    with state.take(group), Tracker("metrics/train", params, len(train.class_names), tags, state.lock, clock) as log:
        state.restore(trainer)
        for epoch, values in enumerate(trainer.history):
            log.log_epoch(epoch, values)
        for number, values in enumerate(trainer.epochs(), len(trainer.history) + 1):
            with clock(SAVING):
                state.save(number, trainer.state_dict())
            log.log_epoch(number - 1, values)
            print(f"train: epoch {number}/{params.training.num_epochs} {in_words(values)}", flush=True)
        with clock(SAVING), files.atomic(CHECKPOINT) as folder:
            checkpoint.save(folder, network, normalize, train.resize, params.model)
        log.finish(best := trainer.best["metrics"], files.sha256(CHECKPOINT / "model.safetensors"))
        state.forget()
    print(f"train: where the time went\n{clock.table()}")
    print(f"train: {CHECKPOINT}: epoch {best['best_epoch'] + 1}, val accuracy {best['val_accuracy']:.4f}; {took()}")


if __name__ == "__main__":
    exit_with(main)
