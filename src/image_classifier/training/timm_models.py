"""The models of timm, in the wrapper that transformers has for them.

timm itself is imported where it is used: it takes seconds, which other models are not to wait for.
"""

import difflib

from transformers import PretrainedConfig, PreTrainedModel

from image_classifier.core.errors import UserError

TYPE, PREFIX = "timm_wrapper", "timm/"  # of such models: their type in transformers, and of their names on the hub


def architecture(name: str) -> str:
    """The architecture of a model of timm: that of `timm/resnet18.a1_in1k` is resnet18.

    Raises UserError: this version of timm has no such architecture; those with names like it are told.
    """
    import timm

    wanted = name.removeprefix(PREFIX).partition(".")[0]
    if timm.is_model(wanted):
        return wanted
    close = difflib.get_close_matches(wanted, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(PREFIX + match for match in close)}?" if close else "see timm.list_models()"
    raise UserError(f"model.name = {name}: timm {timm.__version__} has no {wanted}; {hint}")


def configure(name: str, labels: dict, image_size: int) -> PretrainedConfig:
    """The settings of a network named `timm/ARCHITECTURE`, for images of `image_size` where it takes one size alone."""
    import timm
    from transformers import TimmWrapperConfig

    kind = architecture(name)
    known = timm.get_pretrained_cfg(kind)
    fixed = known is not None and known.fixed_input_size
    return TimmWrapperConfig(architecture=kind, model_args={"img_size": image_size} if fixed else None, **labels)


def from_scratch(config: PretrainedConfig) -> PreTrainedModel:
    """A network with random weights, drawn as timm draws them: the wrapper's own are meant to be overwritten."""
    import timm
    from transformers import TimmWrapperForImageClassification

    network = TimmWrapperForImageClassification._from_config(config)
    drawn = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
    network.timm_model.load_state_dict(drawn.state_dict())
    return network


def settle(network: PreTrainedModel, class_names: list[str], dropout: float | None) -> None:
    """Set what the wrapper does not: the names of the classes, and dropout where a head keeps it as a number.

    A checkpoint's way to prepare images goes: left in config.json, it would win over preprocessor_config.json.
    """
    network.config.label_names = class_names
    if hasattr(network.config, "pretrained_cfg"):
        del network.config.pretrained_cfg
    for module in network.modules():
        if dropout is not None and type(getattr(module, "drop_rate", None)) in (int, float):
            module.drop_rate = dropout


def head(network: PreTrainedModel) -> set[str]:
    """The parameters of the classifier's head.

    Raises UserError: there is none.
    """
    found = network.timm_model.get_classifier()
    heads = found if isinstance(found, tuple) else (found,)  # two, in a distilled network
    own = {id(parameter) for one in heads for parameter in one.parameters()}
    if not own:
        raise UserError(f"model.name: {network.config.architecture} of timm has no head for classes: choose another")
    return {name for name, parameter in network.named_parameters() if id(parameter) in own}


def numbers(network: PreTrainedModel, head: set[str]) -> dict[str, int]:
    """The layer of each parameter as timm groups them, counted from 0, which is before the first block."""
    from timm.models import group_parameters

    prefix, matcher = f"{network.base_model_prefix}.", network.timm_model.group_matcher(coarse=False)
    found = group_parameters(network.timm_model, matcher, reverse=True)
    last = max(found.values())
    # Above the last block timm has a group of what no block holds, the head among it; or the head is in that block's.
    parts = [
        {name.split(".")[0] for name in found if found[name] == number and prefix + name not in head}
        for number in (last - 1, last)
    ]
    if not parts[0] & parts[1]:
        last -= 1
    return {prefix + name: min(number, last) for name, number in found.items()}
