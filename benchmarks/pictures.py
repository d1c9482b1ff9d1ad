"""Pictures to measure with: like CIFAR-10's files in size and format."""

import io

import numpy as np
from PIL import Image

CLASSES = [str(number) for number in range(10)]


def pictures(count: int) -> list[bytes]:
    """PNG files of 32 x 32 pixels: smooth colours with some noise, so that they compress as photos do."""
    random = np.random.default_rng(0)
    files = []
    for _ in range(count):
        smooth = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
        noise = random.integers(-12, 13, (32, 32, 3))
        pixels = np.clip(np.asarray(smooth).astype(int) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files
