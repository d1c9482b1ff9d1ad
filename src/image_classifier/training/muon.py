"""Muon: the update of each weight matrix is made orthogonal, so that all its directions learn at the same pace."""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Of the polynomial whose iterates bring singular values near 1 (Jordan 2024, https://kellerjordan.github.io/posts/muon).
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5
MOMENTUM = 0.95  # Nesterov's


class Muon(torch.optim.AdamW):
    """Muon for the groups with `is_hidden` set, AdamW for the others; at the same rate, their steps have the same size.

    torch.optim.Muon takes 2-D weights only; here a filter is one too, [outputs, inputs x height x width].
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        # GradScaler would leave unscaling and overflows to AdamW where that is fused, and Muon's part knows nothing of
        # them. So each step in fp16 waits for the GPU, to know whether it overflowed.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient, and drop the gradients of Muon's."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"] if group["is_hidden"] else ():
                if weight.grad is not None:
                    if not (state := self.state[weight]):  # AdamW asks each state that is loaded for a step
                        state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
                    momentum = state["momentum"].mul_(MOMENTUM).add_(weight.grad)
                    matrix = weight.grad.add(momentum, alpha=MOMENTUM).flatten(1)
                    # AdamW's steps have a root mean square of 0.2 at a rate of 1 (section 2.2 of arXiv 2502.16982).
                    size = 0.2 * math.sqrt(max(matrix.shape))
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(orthogonal(matrix).view_as(weight), alpha=group["lr"] * size)
                    weight.grad = None  # so that AdamW passes it by
        super().step()
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought near 1 (0.7 to 1.2; very small ones stay smaller).

    Its products are computed in autocast's number format.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    found = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.T  # the smaller of the two products
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=B, alpha=C), found, beta=A)
    return found.to(matrix.dtype)


def hidden_weights(network: nn.Module, head: set[str]) -> set[str]:
    """The names of the weights that Muon is for: those of linear and convolutional layers, but for the head's.

    Grouped convolutions, depthwise ones among them, have a matrix for each group: they are left to AdamW.
    """
    kinds = (nn.Linear, nn.Conv2d)
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds))
    return {f"{name}.weight" for name, layer in layers if getattr(layer, "groups", 1) == 1} - head
