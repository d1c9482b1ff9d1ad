"""A network as layers from its input to its output: which are the classifier's head, and which are trained."""

from torch import nn
from transformers import PreTrainedModel

from image_classifier.core.errors import UserError
from image_classifier.training import timm_models


def head_parameters(network: PreTrainedModel) -> set[str]:
    """The parameters that belong to the classifier's head: what lies outside the backbone, or the last layer alone.

    Raises UserError: there is no layer with one output per class.
    """
    if hasattr(network, "timm_model"):
        return timm_models.head(network)
    outputs = network.config.num_labels
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not layers:
        raise UserError(
            f"model.name: {type(network).__name__} has no linear layer with {outputs} outputs to be its head"
        )
    prefix = f"{network.base_model_prefix}."
    names = {name for name, _ in network.named_parameters()}
    outside = {name for name in names if not name.startswith(prefix)}
    if network.base_model is not network and f"{layers[-1]}.weight" in outside:
        return outside
    return {name for name in names if name.startswith(f"{layers[-1]}.")}


def layers(network: PreTrainedModel, head: set[str]) -> list[list[str]]:
    """The names of all parameters, from input to output: those before the first block, of each block, of the head.

    What comes between the last block and the head belongs to that block.
    """
    number = _numbers(network, head)
    found: list[list[str]] = [[] for _ in range(max(number.values()) + 1)]
    for name, _ in network.named_parameters():
        if name not in head:
            found[number[name]].append(name)
    return [*found, sorted(head)]


def _numbers(network: PreTrainedModel, head: set[str]) -> dict[str, int]:
    """The layer of each parameter, counted from 0, which is before the first block."""
    if hasattr(network, "timm_model") and hasattr(network.timm_model, "group_matcher"):  # a few of timm's lack it
        return timm_models.numbers(network, head)

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    # The largest list of modules is that of the blocks: others are of their parts, or of patch embeddings.
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    blocks = max(lists, key=size, default=nn.ModuleList())
    # Lists of the same length beside it belong to the same blocks, such as the patch embedding that each starts with.
    around = [module for module in network.modules() if any(part is blocks for part in module.children())]
    beside = [part for module in around for part in module.children() if isinstance(part, nn.ModuleList)]
    alike = [part for part in beside if len(part) == len(blocks)]
    block_of = {id(weight): i for part in alike for i, block in enumerate(part, 1) for weight in block.parameters()}
    numbers, reached = {}, 0
    for name, parameter in network.named_parameters():  # in order of definition
        reached = block_of.get(id(parameter), reached)
        numbers[name] = reached
    return numbers


def freeze(network: PreTrainedModel, head: set[str], last_blocks: int) -> None:
    """Let only the head and the last blocks change.

    Raises UserError: the network has fewer blocks.
    """
    _, *blocks, _ = parts = layers(network, head)
    if last_blocks > len(blocks):
        raise UserError(f"model.unfreeze_blocks = {last_blocks}, but the backbone has {len(blocks)} blocks")
    trained = {name for part in parts[len(parts) - 1 - last_blocks :] for name in part}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
