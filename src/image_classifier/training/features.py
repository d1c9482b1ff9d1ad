"""The features of a frozen backbone, computed once: every epoch then runs the head alone."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from image_classifier.core.config import Training
from image_classifier.images.shards import ShardReader
from image_classifier.model.batches import batches
from image_classifier.model.inference import with_progress
from image_classifier.model.numerics import Compute
from image_classifier.training.augment import is_random, mixing
from image_classifier.training.modes import train_mode
from image_classifier.training.sizes import check_sizes, smallest_batches


class Head(nn.Module):
    """The last layer of a network, to be used like one; what it takes for images are features, float [N, features]."""

    base_model_prefix = ""

    def __init__(self, network: PreTrainedModel, linear: nn.Linear):
        super().__init__()
        self.config, self.linear, self.base_model = network.config, linear, None

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.linear(pixel_values))


def lone_head(network: PreTrainedModel, training: Training, full_size: int) -> Head | None:
    """The head, if nothing else of the network is trained and every epoch shows it the same features."""
    trained = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    linear = [m for m in network.modules() if isinstance(m, nn.Linear) and {id(p) for p in m.parameters()} == trained]
    changes = is_random(training.augmentation) or mixing(training.augmentation, num_classes=2) is not None
    is_fixed = training.fast_mode or not changes
    has_one_size = set(training.resolution_schedule or [full_size]) == {full_size}
    return Head(network, linear[0]) if len(linear) == 1 and is_fixed and has_one_size else None


@torch.no_grad()
def features_of(
    split: ShardReader,
    network: PreTrainedModel,
    head: Head,
    normalize: nn.Module,
    compute: Compute,
    batch_size: int,
    shown: bool,
) -> ShardReader | None:
    """The split with features in the place of images; None if they change, or if the scores are not the head's of them.

    That shows on the first batch, seen twice: dropout before the head, for one, would change them.
    """
    compute.place(network)
    normalize.to(compute.device)
    train_mode(network)
    parts: list[Tensor] = []
    seen: list[Tensor] = []
    with head.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        for images, _ in with_progress(batches(split, batch_size), len(split), "features", shown):
            seen.clear()
            pixels = normalize(images.to(compute.device))
            with compute.autocast():
                scores = network(pixel_values=pixels).logits
                if not parts:
                    network(pixel_values=pixels)
                    if len(seen) != 2 or not torch.equal(*seen) or not torch.equal(head.linear(seen[0]), scores):
                        return None
            parts.append(seen[0].cpu().clone())  # a view of one token would keep all tokens in memory
    found = copy.copy(split)
    found.images, found.starts = [torch.cat(parts)], np.array([0, len(split)])
    return found


def set_up(
    network: PreTrainedModel,
    normalize: nn.Module,
    compute: Compute,
    training: Training,
    train: ShardReader,
    val: ShardReader,
    shown: bool = True,
) -> tuple[Any, nn.Module, ShardReader, ShardReader]:
    """What the loop is to train, how images become its input, and the two splits.

    What was given, or, where a head alone is trained on images that never change, that head and their features. Of
    several processes the first one has progress bars: `shown`.

    Raises UserError: the network cannot take the images.
    """
    check_sizes(network, smallest_batches(training, len(train), train.resize.size))
    if (head := lone_head(network, training, train.resize.size)) is None:
        return network, normalize, train, val
    of_train, of_val = (
        features_of(split, network, head, normalize, compute, training.batch_size, shown) for split in (train, val)
    )
    if of_train is None or of_val is None:
        print("train: the frozen backbone runs in every epoch: dropout or another layer lies between it and the head")
        return network, normalize, train, val
    print("train: the features of the frozen backbone are computed once", flush=True)
    return head, nn.Identity(), of_train, of_val
