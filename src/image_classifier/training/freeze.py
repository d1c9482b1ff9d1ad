"""Which parameters are the classifier's head, and which of the others are trained."""

from torch import nn
from transformers import PreTrainedModel

from image_classifier.core.config import Model
from image_classifier.core.errors import UserError


def head_parameters(network: PreTrainedModel, model: Model) -> set[str]:
    """The parameters that belong to the classifier's head: what lies outside the backbone, or the last layer alone.

    Raises UserError: there is no layer with one output per class.
    """
    outputs = network.config.num_labels
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not layers:
        raise UserError(f"model.name = {model.name} has no linear layer with {outputs} outputs to be its head")
    prefix = f"{network.base_model_prefix}."
    names = {name for name, _ in network.named_parameters()}
    outside = {name for name in names if not name.startswith(prefix)}
    if network.base_model is not network and f"{layers[-1]}.weight" in outside:
        return outside
    return {name for name in names if name.startswith(f"{layers[-1]}.")}


def freeze(network: PreTrainedModel, head: set[str], last_blocks: int) -> None:
    """Let only the head, the last blocks, and what is defined after them change."""

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # The largest list of modules is that of the blocks: others are of their parts, or of patch embeddings.
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    blocks = max(lists, key=size, default=nn.ModuleList())
    if last_blocks > len(blocks):
        raise UserError(f"model.unfreeze_blocks = {last_blocks}, but the backbone has {len(blocks)} blocks")
    first = next(blocks[-last_blocks].parameters()) if last_blocks else None
    reached = False
    for name, parameter in network.named_parameters():  # in order of definition
        reached = reached or parameter is first
        parameter.requires_grad_(reached or name in head)
