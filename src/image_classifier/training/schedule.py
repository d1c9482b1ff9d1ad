"""What changes from epoch to epoch: image size and learning rate; and the optimizer."""

import math

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from image_classifier.core.config import Training


def image_size(schedule: list[int] | None, epoch: int, num_epochs: int, full_size: int) -> int:
    """The training resolution of an epoch (from 0): the schedule's sizes share the epochs equally.

    After MobileViT's multi-scale sampler, section 3.2 of arXiv 2110.02178. With fewer epochs than
    sizes the last sizes are kept.
    """
    if schedule is None:
        return full_size
    # Counted from the end, so that the last epoch has the last size, however few epochs there are.
    epochs_after = num_epochs - 1 - epoch
    sizes_after = epochs_after * len(schedule) // num_epochs
    return schedule[len(schedule) - 1 - sizes_after]


def build_optimizer(network: nn.Module, training: Training) -> Optimizer:
    """The optimizer of all parameters that are trained."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]  # of norms, and biases
    vector_decay = training.weight_decay if training.decay_norms_and_biases else 0.0
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": vectors, "weight_decay": vector_decay},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(groups, lr=training.learning_rate, betas=(0.9, training.adam_beta2), fused=True)


def build_scheduler(optimizer: Optimizer, training: Training, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate of each of `steps` steps; `warmup_fraction` of them lead up to the peak."""
    warmup = training.warmup_fraction * steps

    def share_of_peak(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        remaining = (steps - step) / (steps - warmup)  # from 1 at the peak to 0 at the end
        match training.scheduler:
            case "cosine":
                return (1 - math.cos(math.pi * remaining)) / 2
            case "one_cycle":
                return remaining
        return 1.0

    return lr_scheduler.LambdaLR(optimizer, share_of_peak)
