"""Training on this CPU: our loop against Hugging Face's Trainer, 160 px, batches of 128 and of 8, its default.

    python -m benchmarks.training

The Trainer runs on a plain torchvision transform, with its defaults; the same model from the same
seed, the same images. The first step is not counted. `benchmarks.precisions` holds number formats
against each other.
"""

import io
import tempfile
import time
from pathlib import Path

from benchmarks import pairs
from benchmarks.images import CLASSES, images, write_made_shards

COLUMNS = pairs.columns("images/s", "Trainer")
BATCH_SIZE, SIZE = 128, 160
OUR_STEPS, TRAINER_STEPS = 6, 2  # counted; a step of the Trainer takes half a minute
SMALL = {"batch_size": 8, "steps": 32}


def ours(precision: str, device: str = "cpu", steps: int = OUR_STEPS, batch_size: int = BATCH_SIZE, **changes) -> float:
    """Images per second of `engine.Trainer`, shards included; `changes` are of the training settings."""
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
        network = build_network(params.model, CLASSES, SIZE, seed=0)
        normalize = input_normalization("imagenet", params.model)
        chosen = numerics.resolve(device, precision)
        trainer = Trainer(network, normalize, chosen, training, 0, train, train)
        network.train()
        ends = []
        for step, (images, labels) in enumerate(batches(train, batch_size, shuffled(len(train), 0, 0))):
            loss, *_ = trainer.stepper.step(images, labels, step, SIZE)
            if device == "cuda" and step in (0, steps):
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
        assert torch.isfinite(loss)
    return batch_size * steps / (ends[-1] - ends[0])


def trainer(
    bf16: bool, device: str = "cpu", steps: int = TRAINER_STEPS, workers: int = 0, batch_size: int = BATCH_SIZE
) -> float:
    """Images per second of `transformers.Trainer`."""
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
    files = images(batch_size * (steps + 1))

    class Images:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int) -> dict:
            return {"pixel_values": transform(Image.open(io.BytesIO(files[number]))), "labels": number % 10}

    class Ends(TrainerCallback):
        def __init__(self):
            self.ends = []

        def on_step_end(self, *_, **__) -> None:
            if device == "cuda" and len(self.ends) in (0, steps):
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    network = build_network(config.load(pairs.ROOT / "params.yaml").model, CLASSES, SIZE, seed=0)
    network = network.to(memory_format=torch.contiguous_format)
    ends = Ends()
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
        Trainer(model=network, args=arguments, train_dataset=Images(), callbacks=[ends]).train()
    return batch_size * steps / (ends.ends[-1] - ends.ends[0])


if __name__ == "__main__":
    ways = {
        "ours": lambda: ours("auto"),
        "ours, batch 8": lambda: ours("auto", **SMALL),
        "Trainer, batch 8": lambda: trainer(bf16=False, **SMALL),
        "Trainer": lambda: trainer(bf16=False),
    }
    pairs.main(
        "Training on CPU, 160 px, batch 128 where not said", "images/s", ways, ["torch", "transformers", "accelerate"]
    )
