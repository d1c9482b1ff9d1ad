"""The models of timm, in the wrapper that transformers has for them."""

import difflib

import timm
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from image_classifier.core.errors import UserError

PREFIX = "timm/"  # of the names of timm's models on the hub


def architecture(name: str) -> str:
    """The architecture of a model of timm: that of `timm/resnet18.a1_in1k` is resnet18.

    Raises UserError: this version of timm has no such architecture; those with names like it are told.
    """
    wanted = name.removeprefix(PREFIX).partition(".")[0]
    if timm.is_model(wanted):
        return wanted
    close = difflib.get_close_matches(wanted, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(PREFIX + match for match in close)}?" if close else "see timm.list_models()"
    raise UserError(f"model.name = {name}: timm {timm.__version__} has no {wanted}; {hint}")


def configure(name: str, labels: dict, image_size: int) -> TimmWrapperConfig:
    """The settings of a network named `timm/ARCHITECTURE`, for images of `image_size` where it takes one size alone."""
    kind = architecture(name)
    known = timm.get_pretrained_cfg(kind)
    fixed = known is not None and known.fixed_input_size
    return TimmWrapperConfig(architecture=kind, model_args={"img_size": image_size} if fixed else None, **labels)


def from_scratch(config: TimmWrapperConfig) -> TimmWrapperForImageClassification:
    """A network with random weights, drawn as timm draws them: the wrapper's own are meant to be overwritten."""
    network = TimmWrapperForImageClassification._from_config(config)
    drawn = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
    network.timm_model.load_state_dict(drawn.state_dict())
    return network


def settle(network: TimmWrapperForImageClassification, class_names: list[str], dropout: float | None) -> None:
    """Set what the wrapper does not: the names of the classes, and dropout where a head keeps it as a number.

    A checkpoint's way to prepare images goes: left in config.json, it would win over preprocessor_config.json.
    """
    network.config.label_names = class_names
    if hasattr(network.config, "pretrained_cfg"):
        del network.config.pretrained_cfg
    for module in network.modules():
        if dropout is not None and isinstance(getattr(module, "drop_rate", None), float):
            module.drop_rate = dropout
