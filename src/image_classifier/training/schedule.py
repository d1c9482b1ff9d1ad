"""What changes from epoch to epoch: image size and learning rate; and the optimizer."""

import math
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from transformers import PreTrainedModel

from image_classifier.core.config import Training
from image_classifier.core.errors import UserError
from image_classifier.training.layers import head_parameters, layers
from image_classifier.training.muon import Muon, hidden_weights


def image_size(schedule: list[int] | None, epoch: int, num_epochs: int, full_size: int) -> int:
    """The training resolution of an epoch (from 0): the schedule's sizes, spread evenly over the epochs.

    After MobileViT's multi-scale sampler, section 3.2 of arXiv 2110.02178. With fewer epochs than
    sizes some are skipped, never the last.
    """
    if schedule is None:
        return full_size
    # Counted from the end, so that the last epoch has the last size, however few epochs there are.
    epochs_after = num_epochs - 1 - epoch
    sizes_after = epochs_after * len(schedule) // num_epochs
    return schedule[len(schedule) - 1 - sizes_after]


def build_optimizer(network: PreTrainedModel, training: Training) -> Optimizer:
    """The optimizer of all parameters that are trained, each with its share of the learning rate.

    Fused, also because the other kernels take MKL's square root, whose last digit depends on the processor.
    """
    factors = rate_factors(network, training)
    hidden = hidden_weights(network, head_parameters(network)) if training.optimizer == "muon" else set()
    groups: dict[tuple[float, bool, bool], dict[str, Any]] = {}
    # Matrices and filters first, then norms and biases.
    for name, parameter in sorted(network.named_parameters(), key=lambda named: named[1].ndim <= 1):
        if parameter.requires_grad:
            factor, is_vector = factors.get(name, 1.0), parameter.ndim <= 1
            decay = 0.0 if is_vector and not training.decay_norms_and_biases else training.weight_decay
            settings = {"params": [], "weight_decay": decay, "lr": training.learning_rate * factor, "factor": factor}
            settings["is_hidden"] = name in hidden
            groups.setdefault((factor, is_vector, name in hidden), settings)["params"].append(parameter)
    found = list(groups.values())
    if training.optimizer == "sgd":
        return torch.optim.SGD(found, lr=training.learning_rate, momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}[training.optimizer]
    return kind(found, lr=training.learning_rate, betas=(0.9, training.adam_beta2), fused=True)


def rate_factors(network: PreTrainedModel, training: Training) -> dict[str, float]:
    """By what the learning rate is multiplied for each parameter, where that is not 1.

    The head's by training.head_lr_factor; that of each block, from the last to the first, by once more
    training.layer_lr_decay (Clark et al. 2020, arXiv 2003.10555).
    """
    if training.head_lr_factor == 1 and training.layer_lr_decay == 1:
        return {}
    *backbone, head = layers(network, head_parameters(network))
    if training.layer_lr_decay != 1 and len(backbone) < 2:
        raise UserError(f"training.layer_lr_decay: {type(network).__name__} has no list of blocks: set it to 1")
    factors = dict.fromkeys(head, training.head_lr_factor)
    for depth, names in enumerate(reversed(backbone)):
        factors |= dict.fromkeys(names, training.layer_lr_decay**depth)
    return factors


def current_rate(optimizer: Optimizer) -> float:
    """The learning rate now, of what has no factor of its own."""
    group = optimizer.param_groups[0]
    return group["lr"] / group["factor"]


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
