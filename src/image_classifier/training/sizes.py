"""Which image sizes a network can take."""

import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from image_classifier.core.config import Training
from image_classifier.core.errors import UserError, first_line
from image_classifier.model.batches import num_batches
from image_classifier.training.augment import rescale
from image_classifier.training.modes import train_mode
from image_classifier.training.schedule import image_size

# What architectures raise at a size that they cannot take.
UNFIT = ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError


def takes_positions(network: PreTrainedModel) -> bool:
    """Whether position embeddings tie the network to one image size, as in ViT."""
    return "interpolate_pos_encoding" in inspect.signature(network.forward).parameters


def own_size(network: PreTrainedModel) -> int | list[int] | None:
    """The image size that the network was made for, if any; SigLIP and its like keep it one level deeper."""
    return getattr(vision_config(network), "image_size", None)


def vision_config(network: PreTrainedModel) -> PretrainedConfig:
    """The settings of the part that sees images."""
    return getattr(network.config, "vision_config", network.config)


def smallest_batches(training: Training, count: int, full_size: int) -> dict[int, int]:
    """The images in the smallest batch at every size (pixels) that training or validation will use, two at most.

    `count` images are trained on; `full_size` is data.image_size.
    """
    epochs = range(training.num_epochs)
    sizes = {image_size(training.resolution_schedule, epoch, len(epochs), full_size) for epoch in epochs}
    sizes.add(full_size)  # at which the last epoch is validated
    smallest = dict.fromkeys(sizes, count // num_batches(count, training.batch_size))
    if training.batch_norm_images:  # on which the statistics are recomputed
        sample = min(training.batch_norm_images, count)
        images = sample // num_batches(sample, training.batch_size)
        smallest = {size: min(images, smallest[size]) for size in sizes}
    return {size: min(images, 2) for size, images in smallest.items()}


def check_sizes(network: PreTrainedModel, batches: dict[int, int]) -> None:
    """Try a training step's forward pass on a batch of so many images at each size (pixels -> images).

    Raises UserError: the network cannot take it, or gives no score for each class.
    """
    trial, name = copy.deepcopy(network), type(network).__name__  # batch norm's statistics change in it
    train_mode(trial)
    for size, count in sorted(batches.items()):
        try:
            with torch.no_grad():
                pixels = torch.zeros(count, 3, size, size)
                outputs = trial(pixel_values=pixels, **forward_options(trial, size)).logits.shape[-1]
        except UNFIT as error:
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"training.batch_size leaves a batch of one image, on which batch norm in {name} cannot train at "
                    f"{size} px: set it to 3 or more"
                ) from None
            raise UserError(
                f"{name} cannot be trained at {size} px ({first_line(error)}): choose another data.image_size, or "
                "set training.resolution_schedule=null"
            ) from None
        if outputs != network.config.num_labels:
            raise UserError(
                f"{name} gives {outputs} scores for {network.config.num_labels} classes: choose another model"
            )


class AtSize(nn.Module):
    """A network that scales its images to `size` pixels first."""

    def __init__(self, network: PreTrainedModel, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        pixels = rescale(pixel_values, self.size)
        return self.network(pixel_values=pixels, **forward_options(self.network, self.size))


def forward_options(network: PreTrainedModel, size: int) -> dict[str, bool]:
    """What the network's forward must be told when images of another size than its own come in."""
    if takes_positions(network) and own_size(network) != size:
        return {"interpolate_pos_encoding": True}
    return {}
