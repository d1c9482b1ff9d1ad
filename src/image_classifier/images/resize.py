"""From an RGB image of any size to the square that a network takes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

warnings.filterwarnings("ignore", message="The given buffer is not writable")  # it is only read


@dataclass(frozen=True)
class Resize:
    """Any image file to RGB of size x size, bilinear with antialias, by torch's uint8 kernel.

    That kernel is what Hugging Face's processors use; it is within one level of 255 of Pillow's.
    """

    size: int  # pixels
    mode: str  # "stretch", or "crop": the shorter side to size, then the middle
    background: str = "white"  # what shows where an image is transparent

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [size, size, 3]: height, width, RGB."""
        return self.many([image.tobytes()], image.size)[0]

    def many(self, images: Sequence[bytes], size: tuple[int, int]) -> Tensor:
        """Resize RGB images of one size (width, height), given as their bytes; return uint8 [N, size, size, 3]."""
        width, height = size
        pixels = torch.frombuffer(b"".join(images), dtype=torch.uint8)  # of a single image without a copy
        pixels = pixels.view(len(images), height, width, 3).permute(0, 3, 1, 2)
        new_height = new_width = self.size
        if self.mode == "crop":
            shorter = min(height, width)
            new_height, new_width = self.size * height // shorter, self.size * width // shorter
        pixels = F.interpolate(pixels, (new_height, new_width), mode="bilinear", antialias=True)
        top, left = (new_height - self.size) // 2, (new_width - self.size) // 2
        middle = pixels[:, :, top : top + self.size, left : left + self.size]
        return middle.permute(0, 2, 3, 1).contiguous()
