"""Images to a normalized batch: our shards against the per-image PIL transform in a DataLoader.

    python -m benchmarks.feeding

Both give batches of 128 of 4,096 images at 160 px, float32, with ImageNet's mean and deviation, on
all cores (the DataLoader has one worker for each). The shards hold them decoded and resized, which
is what they are for; PIL decodes and resizes PNG files of 32 x 32, held in memory, in every pass.
The second pass is counted.
"""

import tempfile
import time
from pathlib import Path

from benchmarks import pairs
from benchmarks.images import CLASSES, images, write_made_shards
from image_classifier.core import runtime
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches, shuffled
from image_classifier.model.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

COLUMNS = pairs.columns("images/s", "PIL")
COUNT, BATCH_SIZE, SIZE = 4096, 128, 160


def shards() -> float:
    """Images per second through `ShardReader` and `Normalize`."""

    runtime.configure(None)
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", COUNT, SIZE)
        reader = ShardReader(Path(folder) / "train")
        for epoch in range(2):
            start = time.perf_counter()
            for images, _ in batches(reader, BATCH_SIZE, shuffled(COUNT, 0, epoch)):
                batch = normalize(images)
    assert batch.shape == (BATCH_SIZE, 3, SIZE, SIZE)
    return COUNT / (time.perf_counter() - start)


def pil() -> float:
    """Images per second of the published recipe's transform, by worker processes."""
    import io

    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    steps = [transforms.Resize((SIZE, SIZE)), transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform, files = transforms.Compose(steps), images(COUNT)

    class Images(Dataset):
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, number: int) -> tuple:
            return transform(Image.open(io.BytesIO(files[number])).convert("RGB")), number % len(CLASSES)

    workers = runtime.cpus()
    loader = DataLoader(Images(), BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=True)
    for _ in range(2):
        start = time.perf_counter()
        for batch, _ in loader:
            assert batch.shape == (BATCH_SIZE, 3, SIZE, SIZE)
    return COUNT / (time.perf_counter() - start)


if __name__ == "__main__":
    pairs.main("Feeding: shards to normalized batches", "images/s", {"shards": shards, "PIL": pil}, ["torch", "pillow"])
