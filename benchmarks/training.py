"""Training on this CPU: our loop against Hugging Face's Trainer, 160 px, batches of 128 and of 8, its default.

    python -m benchmarks.training

The Trainer runs on a plain torchvision transform, with its defaults; the same model from the same
seed, the same images. The first step is not counted. `benchmarks.precisions` holds number formats
against each other.
"""

import io
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.images import CLASSES, images, write_made_shards

COLUMNS = pairs.columns("images/s", "Trainer")
BATCH_SIZE, SIZE = 128, 160
OUR_STEPS, TRAINER_STEPS = 6, 2  # counted; a step of the Trainer takes half a minute
SMALL: dict[str, Any] = {"batch_size": 8, "steps": 32}


@dataclass
class Pace:
    """When steps ended, of which the first is not counted."""

    batch_size: int
    ends: list[tuple[float, float]] = field(default_factory=list)  # seconds on the clock, and of this process's CPUs

    def mark(self) -> None:
        """A step has ended."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def per_image(self) -> tuple[float, float]:
        """Seconds on the clock and CPU seconds."""
        images = self.batch_size * (len(self.ends) - 1)
        (start, cpu_start), (end, cpu_end) = self.ends[0], self.ends[-1]
        return (end - start) / images, (cpu_end - cpu_start) / images

    def rate(self) -> float:
        """Images per second."""
        return 1 / self.per_image()[0]


def ours(
    precision: str,
    device: str = "cpu",
    steps: int = OUR_STEPS,
    batch_size: int = BATCH_SIZE,
    model: str | None = None,
    **changes: Any,
) -> Pace:
    """The loop of this project, shards included; `model` is a model.name, `changes` are of the training settings."""
    import torch

    from image_classifier.core import config, runtime
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches, shuffled
    from image_classifier.training.build import build_network, input_normalization
    from image_classifier.training.trainer import Trainer

    runtime.configure(None)
    params = config.load(pairs.ROOT / "params.yaml")
    training = params.training.model_copy(
        update={"batch_size": batch_size, "resolution_schedule": None, "fast_mode": True, "num_epochs": 1} | changes
    )
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", batch_size * (steps + 1), SIZE)
        train = ShardReader(Path(folder) / "train")
        settings = params.model.model_copy(update={"name": model or params.model.name})
        network = build_network(settings, CLASSES, SIZE, seed=0)
        normalize = input_normalization("imagenet", settings)
        chosen = numerics.resolve(device, precision)
        trainer = Trainer(network, normalize, chosen, training, 0, train, train)
        network.train()
        pace = Pace(batch_size)
        for step, (images, labels) in enumerate(batches(train, batch_size, shuffled(len(train), 0, 0))):
            loss, *_ = trainer.stepper.step(images, labels, step, SIZE)
            if device == "cuda" and step in (0, steps):
                torch.cuda.synchronize()
            pace.mark()
        assert torch.isfinite(loss)
    return pace


def trainer(
    bf16: bool,
    device: str = "cpu",
    steps: int = TRAINER_STEPS,
    workers: int = 0,
    batch_size: int = BATCH_SIZE,
    model: str | None = None,
) -> Pace:
    """`transformers.Trainer` on the same network."""
    import torch
    from PIL import Image
    from torchvision import transforms
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from image_classifier.core import config
    from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD
    from image_classifier.training.build import build_network

    transform = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    files = images(batch_size * (steps + 2))  # its loader is a batch ahead, so that each counted step loads one

    class Images:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int) -> dict:
            return {"pixel_values": transform(Image.open(io.BytesIO(files[number]))), "labels": number % 10}

    class Ends(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            if device == "cuda" and len(pace.ends) in (0, steps):
                torch.cuda.synchronize()
            pace.mark()
            control.should_training_stop = len(pace.ends) > steps

    pace, settings = Pace(batch_size), config.load(pairs.ROOT / "params.yaml").model
    network = build_network(settings.model_copy(update={"name": model or settings.name}), CLASSES, SIZE, seed=0)
    network = network.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            report_to=[],
            save_strategy="no",
            use_cpu=device == "cpu",
            bf16=bf16,
            dataloader_num_workers=workers,
        )
        Trainer(model=network, args=arguments, train_dataset=Images(), callbacks=[Ends()]).train()
    return pace


if __name__ == "__main__":
    ways = {
        "ours": lambda: ours("auto").rate(),
        "ours, batch 8": lambda: ours("auto", **SMALL).rate(),
        "Trainer, batch 8": lambda: trainer(bf16=False, **SMALL).rate(),
        "Trainer": lambda: trainer(bf16=False).rate(),
    }
    pairs.main(
        "Training on CPU, 160 px, batch 128 where not said", "images/s", ways, ["torch", "transformers", "accelerate"]
    )
