"""train: data/shards/{train,val} -> models/checkpoint, metrics/train."""

import sys
from pathlib import Path

from image_classifier import config, distributed, engine, files, models, precision, resume, runtime, tracker
from image_classifier.errors import run
from image_classifier.shards import ShardReader
from image_classifier.timing import SAVING, TRACKING
from stages import took

TRAIN, VAL = Path("data/shards/train"), Path("data/shards/val")
INDEX, CHECKPOINT = TRAIN / "index.json", Path("models/checkpoint")
SHOWN = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def main() -> None:
    """Train, in as many processes as training.num_processes asks for."""
    params = config.load()
    chosen = precision.resolve(params.training.device, params.training.precision)
    distributed.run("train", params.training.num_processes, chosen.device, lambda ranks: fit(params, chosen, ranks))


def fit(params: config.Config, chosen: precision.Precision, ranks: distributed.Ranks) -> None:
    """Keep the best epoch on val, and log every epoch to DVCLive and MLflow."""
    print(f"train: {sys.executable}\ntrain: {chosen.name} on {chosen.device}: {chosen.reason}")
    runtime.configure(params.num_threads, ranks.here)
    train, val = ShardReader(TRAIN), ShardReader(VAL)
    network = models.build(params.model, train.class_names, train.resize.size, params.seed)
    normalize = models.normalization(params.data.normalization, params.model)
    trainer = engine.Trainer(network, normalize, chosen, params.training, params.seed, train, val, ranks)
    state, clock = resume.State(resume.fingerprint(params, chosen, INDEX, VAL / "index.json")), trainer.clock
    if not ranks.first:
        return trainer.follow(state.load(ranks))  # the first process logs and saves for all
    tags = {"precision": chosen.name, "precision.reason": chosen.reason, "data.sha256": files.sha256(INDEX)}
    tags |= runtime.environment() | {"processes": str(ranks.count)}
    with state.lock, tracker.Tracker("metrics/train", params, len(train.class_names), tags, state.lock) as log:
        if kept := state.load(ranks):
            trainer.load_state_dict(kept)
            print(f"train: going on after epoch {len(trainer.history)}, kept in {state.folder}")
        for epoch, values in enumerate(trainer.history):
            log.log_epoch(epoch, values)
        for values in trainer.epochs():
            with clock(SAVING):
                state.save(len(trainer.history), trainer.state_dict())
            with clock(TRACKING):
                log.log_epoch(len(trainer.history) - 1, values)
            shown = ", ".join(f"{name} {values[name]:.4f}" for name in SHOWN)
            print(f"train: epoch {len(trainer.history)}/{params.training.num_epochs}: {shown}", flush=True)
        with clock(SAVING), files.atomic(CHECKPOINT) as folder:
            models.save(folder, network, normalize, train.resize)
        best = trainer.best["metrics"]
        log.finish(best, files.sha256(CHECKPOINT / "model.safetensors"), clock)
        files.remove(state.folder)
    print(f"train: where the time went\n{clock.table()}")
    print(f"train: {CHECKPOINT}: epoch {best['best_epoch'] + 1}, val accuracy {best['val_accuracy']:.4f}; {took()}")


if __name__ == "__main__":
    run(main)
