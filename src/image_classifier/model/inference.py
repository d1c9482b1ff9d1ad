"""What a network says of images."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from image_classifier.core.errors import UserError
from image_classifier.model import numerics
from image_classifier.model.numerics import Compute

Batches = Iterable[tuple[Tensor, Tensor]]  # (images uint8 [N, H, W, 3], labels int64 [N])
Batch = TypeVar("Batch", bound=tuple)  # one of those, or more in the places behind


def with_progress(batches: Iterable[Batch], count: int, title: str, shown: bool = True) -> Iterator[Batch]:
    """The same batches, of `count` images in all, with a progress bar on a terminal if it is to be shown."""
    with tqdm(total=count, desc=title, unit=" images", leave=False, disable=None if shown else True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[0]))


@torch.inference_mode()
def predict(
    network: nn.Module, normalize: nn.Module, batches: Batches, precision: Compute
) -> tuple[np.ndarray, np.ndarray]:
    """Classify every image: labels int64 [N] and probabilities float32 [N, classes].

    Raises UserError: an output is NaN or infinite.
    """
    network.train().eval()  # LeViT caches attention biases in eval mode; train() drops them
    all_labels, all_probabilities = [], []
    for images, labels in batches:
        with precision.autocast():
            logits = network(pixel_values=normalize(images.to(precision.device))).logits
        all_probabilities.append(logits.float().softmax(dim=1).cpu())
        all_labels.append(labels)
    labels, probabilities = torch.cat(all_labels), torch.cat(all_probabilities)
    if not probabilities.isfinite().all():
        raise UserError("the network's outputs are NaN or infinite: train again with a lower training.learning_rate")
    return labels.numpy(), probabilities.numpy()


def predict_in_fp32(
    network: nn.Module, normalize: nn.Module, batches: Batches, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """The same in float32 on the device that training.device names; network and `normalize` are then on the CPU again.

    Raises UserError: an output is NaN or infinite, or there is no such device.
    """
    compute = numerics.resolve(device, "fp32")
    compute.place(network)
    found = predict(network, normalize.to(compute.device), batches, compute)
    network.cpu()
    normalize.cpu()
    return found
