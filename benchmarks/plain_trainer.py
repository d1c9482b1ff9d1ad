"""What a plain Hugging Face Trainer reaches in 20 minutes: the peer of recipes/cifar10-hour.yaml.

    python -m benchmarks.plain_trainer PARQUET_FOLDER    # with train.parquet and test.parquet

The same network from scratch on all training images at 160 px, with the Trainer's default settings (three epochs
planned, batch 8, AdamW 5e-5 in a linear decay, fp32) and torchvision's resize, stopped when its time is up; then it
classifies the test images. No setting was chosen for it.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torchvision import transforms
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks import pairs, records
from image_classifier.core import config
from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD
from image_classifier.model.scores import classification
from image_classifier.training.build import build_network

SECONDS, SIZE = 20 * 60, 160
COLUMNS = ("minutes of training", "images seen", "test accuracy", "of")


class Stop(TrainerCallback):
    """End the training when its time is up."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        self.steps, self.seconds = state.global_step, time.perf_counter() - self.start
        control.should_training_stop = self.seconds > SECONDS


def main() -> None:
    """Train, predict, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", type=Path)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    steps = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform, stop = transforms.Compose(steps), Stop()
    with tempfile.TemporaryDirectory() as folder:
        images = datasets.load_dataset(str(arguments.parquet), cache_dir=folder)
        (label,) = (name for name, kind in images["train"].features.items() if isinstance(kind, datasets.ClassLabel))
        (image,) = (name for name, kind in images["train"].features.items() if isinstance(kind, datasets.Image))
        names = images["train"].features[label].names
        images.set_transform(
            lambda rows: {"pixel_values": [transform(one) for one in rows[image]], "labels": rows[label]}
        )
        network = build_network(config.load(pairs.ROOT / "params.yaml").model, names, SIZE, seed=0)
        settings = TrainingArguments(
            output_dir=folder, report_to=[], save_strategy="no", use_cpu=True, remove_unused_columns=False
        )
        trainer = Trainer(
            model=network.to(memory_format=torch.contiguous_format),
            args=settings,
            train_dataset=images["train"],
            callbacks=[stop],
        )
        trainer.train()
        found = trainer.predict(images["test"])
    probabilities = torch.from_numpy(np.asarray(found.predictions)).softmax(dim=1).numpy()
    accuracy = classification(found.label_ids, probabilities)["accuracy"]
    seen = stop.steps * settings.train_batch_size
    row = [f"{stop.seconds / 60:.1f}", f"{seen:,}", f"{accuracy:.4f}", f"{len(found.label_ids):,}"]
    title, command = "A plain Trainer, its defaults, 160 px", "python -m benchmarks.plain_trainer PARQUET_FOLDER"
    name = "plain_trainer" if arguments.record else None
    records.publish(name, title, command, ["torch", "transformers", "accelerate"], COLUMNS, [row])


if __name__ == "__main__":
    main()
