"""What differs between training and evaluation inside a network: frozen parts, batch norm, dropout."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


def train_mode(network: nn.Module) -> None:
    """Set training mode, but for frozen parts: their batch-norm statistics stay as they are too."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@torch.no_grad()
def recompute_statistics(network: nn.Module, pixels: Iterable[Tensor]) -> None:
    """Recompute the running statistics of batch norm over batches of normalized images, float32 [N, 3, H, W].

    Dropout is off meanwhile: it scales what it keeps, which would bias the variances.
    """
    named = [(module, name) for module in network.modules() for name in ("p", "drop_prob", "drop_rate")]
    rates = [(*pair, getattr(*pair)) for pair in named if isinstance(getattr(*pair, None), float)]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    update_bn(pixels, network)
    for module, name, rate in rates:
        setattr(module, name, rate)
