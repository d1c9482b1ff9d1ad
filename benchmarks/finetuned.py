"""Fine-tuning EfficientNet-Lite0 on CIFAR-10: this project's recipe, transformers' example, and fewer images.

    python -m benchmarks.finetuned PARQUET_FOLDER             # with train.parquet and test.parquet; 35 minutes
    python -m benchmarks.finetuned PARQUET_FOLDER --growth    # the recipe on 100, 1,000 and 10,000 images
    python -m benchmarks.finetuned PARQUET_FOLDER --seeds     # both with five seeds, a core each; five hours
    python -m benchmarks.finetuned PARQUET_FOLDER --hour      # the peer alone, an hour at most on all images

Ours is the real pipeline in a clone of the committed state. The peer is the Trainer with the defaults of transformers'
run_image_classification.py (three epochs, batch 8, AdamW 5e-5 in a linear decay, random resized crops, flips, fp32)
from the same weights, on the same images at the same 160 px, stopped at 15 minutes or at an hour (--seeds: never).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from benchmarks import pairs, records
from benchmarks.records import ROOT
from image_classifier.commands.compare import interval_over_seeds
from image_classifier.core import config, runtime, tables
from image_classifier.evaluation.intervals import wilson

COLUMNS = ("what", "minutes of training", "test accuracy", "95% interval", "of")
GROWTH_COLUMNS = ("training images", "epochs", "minutes of training", "test accuracy", "95% interval")
SECONDS, HOUR, SIZE, SEEDS = 15 * 60, 60 * 60, 160, 5
OURS = "this project, `cifar10-finetune`"
PEER = "Trainer, the defaults of `run_image_classification`"
PREDICTIONS = "peer.csv"  # of the peer, in the clone
SEEDS_COLUMNS = ("seed", OURS, PEER, "difference")
GROWTH = {100: 40, 1_000: 16}  # images: epochs, more where there are fewer, so that there are steps enough


def main() -> None:
    """Run all in turn, each in its own process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--growth", action="store_true", help="fewer images instead of a peer")
    kinds.add_argument("--seeds", action="store_true", help="both with five seeds")
    kinds.add_argument("--hour", action="store_true", help="the peer on all images, beside cifar10-finetune-hour")
    parser.add_argument("--peer", type=Path, metavar="CLONE", help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    if arguments.peer:
        seconds = float("inf") if arguments.seeds else HOUR if arguments.hour else SECONDS
        print(json.dumps(trainer(arguments.peer, seconds)))
        return
    command, packages = "python -m benchmarks.finetuned PARQUET_FOLDER", ["torch", "timm", "transformers"]
    recipe = "cifar10-finetune-hour" if arguments.hour else "cifar10-finetune"
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        shutil.copytree(arguments.parquet, clone / "data/raw/cifar10", copy_function=shutil.copyfile)
        subprocess.run([sys.executable, "-m", "image_classifier", "recipe", recipe], cwd=clone, check=True)
        if arguments.growth:
            epochs = config.load(clone / "params.yaml").training.num_epochs
            runs = {count: pipeline(clone, count, number) for count, number in {**GROWTH, 10_000: epochs}.items()}
            rows = [[f"{count:,}", *run] for count, run in runs.items()]
            note = "The recipe `cifar10-finetune`, 10,000 test images, one seed; 2,000 val images choose the epoch."
            title, name = "How accuracy grows with the number of images", "growth" if arguments.record else None
            records.publish(name, title, f"{command} --growth", packages, GROWTH_COLUMNS, rows, note)
            return
        if arguments.seeds:
            note = "10,000 training images at 160 px, the same weights and 10,000 test images, a core for each seed."
            name, title = "finetuned-seeds" if arguments.record else None, "Fine-tuning with five seeds"
            rows = over_seeds(arguments.parquet, clone)
            records.publish(name, title, f"{command} --seeds", packages, SEEDS_COLUMNS, rows, note)
            return
        if arguments.hour:
            prepare(clone, None)
            note = "The same 38,000 images and pretrained weights as `cifar10-finetune-hour`, at 160 px, one seed."
            name, title = "finetuned-hour-peer" if arguments.record else None, "The peer of an hour of fine-tuning"
            rows = [[PEER, *peer(arguments.parquet, clone, "--hour"), "10,000"]]
            records.publish(name, title, f"{command} --hour", packages, COLUMNS, rows, note)
            return
        ours = pipeline(clone, 10_000)
        theirs = peer(arguments.parquet, clone)
    rows = [[OURS, *ours[1:], "10,000"], [PEER, *theirs, "10,000"]]
    note = "10,000 training images at 160 px, the same pretrained weights, one seed each."
    name = "finetuned" if arguments.record else None
    records.publish(name, "Fine-tuning on 10,000 images of CIFAR-10", command, packages, COLUMNS, rows, note)


def over_seeds(parquet: Path, clone: Path) -> list[list[str]]:
    """Both with each seed: their accuracies, and the means with 95% intervals for other seeds and other test images."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the peers; ours have params.num_threads

    def run(seed: int) -> np.ndarray:
        own = shutil.copytree(clone, clone.with_name(f"seed-{seed}"), symlinks=True)
        pipeline(own, 10_000, seed=seed, threads=1)
        peer(parquet, own, "--seeds")
        return np.stack([right(own / "metrics/evaluate/predictions.csv"), right(own / PREDICTIONS)])

    with ThreadPoolExecutor(runtime.cpus()) as pool:
        found = np.stack(list(pool.map(run, range(SEEDS))), axis=2).astype(float)  # [both, images, seeds]
    columns = [found[0], found[1], found[0] - found[1]]
    rows = [[str(seed), *(f"{column[:, seed].mean():.4f}" for column in columns)] for seed in range(SEEDS)]
    means = [(column.mean(), *interval_over_seeds(column)) for column in columns]
    return [*rows, ["mean", *(f"{mean:.4f} ({low:.4f} to {high:.4f})" for mean, low, high in means)]]


def right(predictions: Path) -> np.ndarray:
    """Whether each test image was classified right, bool [N], in the order of their hashes."""
    table = pd.read_csv(predictions, dtype=str, keep_default_na=False).sort_values(["image", "actual"], kind="stable")
    return (table["predicted"] == table["actual"]).to_numpy()


def prepare(
    clone: Path, count: int | None, epochs: int | None = None, seed: int = 0, threads: int | None = None
) -> int:
    """Prepare `count` training images in the clone, None = all; return its recipe's number of epochs."""
    yaml = YAML()
    params = yaml.load(clone / "params.yaml")
    params["data"]["source"], params["data"]["subset_size"] = "data/raw/cifar10", count
    params["data"]["revision"], params["seed"], params["num_threads"] = None, seed, threads
    if epochs is not None:
        params["training"]["num_epochs"] = epochs
    yaml.dump(params, clone / "params.yaml")
    stage(clone, "prepare")
    return params["training"]["num_epochs"]


def stage(clone: Path, name: str) -> float:
    """Run a stage in the clone; return its minutes."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"stages.{name}"], cwd=clone, check=True, stdout=sys.stderr)
    return (time.perf_counter() - started) / 60


def pipeline(
    clone: Path, count: int, epochs: int | None = None, seed: int = 0, threads: int | None = None
) -> list[str]:
    """Prepare, train and evaluate in the clone on `count` images; epochs, minutes of training, accuracy, interval."""
    number = prepare(clone, count, epochs, seed, threads)
    minutes = stage(clone, "train")
    stage(clone, "evaluate")
    found = tables.read_intervals(clone / "metrics/evaluate/intervals.csv").loc["accuracy"]
    interval = f"{found['low']:.4f} to {found['high']:.4f}"
    return [str(number), f"{minutes:.1f}", f"{found['value']:.4f}", interval]


def peer(parquet: Path, clone: Path, *options: str) -> list[str]:
    """What `trainer` returns, from a process of its own."""
    return pairs.alone("finetuned", str(parquet), "--peer", str(clone), *options)


def trainer(clone: Path, seconds: float) -> list[str]:
    """The peer, on the shards of the clone, for so long at most; minutes of training, accuracy, interval."""
    import torch
    from torchvision.transforms import v2
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from image_classifier.images.shards import ShardReader
    from image_classifier.training.build import build_network, input_normalization

    class Stop(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.start
            control.should_training_stop = self.seconds > seconds

    class Images(torch.utils.data.Dataset):
        def __init__(self, split: str, changes: list):
            self.split = ShardReader(clone / "data/shards" / split)
            scaled = v2.ToDtype(torch.float32, scale=True)
            self.transform = v2.Compose([*changes, scaled, v2.Normalize(normalize.mean, normalize.std)])

        def __len__(self) -> int:
            return len(self.split)

        def __getitem__(self, row: int) -> dict:
            image = self.split.gather(np.array([row]))[0].permute(2, 0, 1)
            return {"pixel_values": self.transform(image), "labels": int(self.split.labels[row])}

    params = config.load(clone / "params.yaml")
    set_seed(params.seed)
    whole = {"dropout": None, "freeze_backbone": False, "unfreeze_blocks": 0}  # as the example trains
    model = params.model.model_copy(update={"name": str(clone / params.model.name)} | whole)
    normalize = input_normalization("checkpoint", model)
    random = [v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()]
    train, test = Images("train", random), Images("test", [])
    network = build_network(model, train.split.class_names, SIZE, params.seed)
    stop = Stop()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            remove_unused_columns=False,
            seed=params.seed,
        )
        loop = Trainer(
            model=network.to(memory_format=torch.contiguous_format),
            args=settings,
            train_dataset=train,
            callbacks=[stop],
        )
        loop.train()
        found = loop.predict(test)
    table = {"image": test.split.hashes, "actual": found.label_ids, "predicted": found.predictions.argmax(axis=1)}
    pd.DataFrame(table).to_csv(clone / PREDICTIONS, index=False)
    share = float((table["predicted"] == table["actual"]).mean())
    low, high = wilson(share, len(test))
    return [f"{stop.seconds / 60:.1f}", f"{share:.4f}", f"{low:.4f} to {high:.4f}"]


if __name__ == "__main__":
    main()
