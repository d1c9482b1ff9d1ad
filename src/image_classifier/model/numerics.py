"""Device and number format, chosen once, with the reason."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from image_classifier.core.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Where and in which number format the network computes; its weights stay float32."""

    device: torch.device
    name: str
    reason: str

    def facts(self) -> dict[str, str]:
        """What was chosen and why, for the record of a run."""
        return {"precision": self.name, "precision.reason": self.reason}

    def autocast(self) -> AbstractContextManager:
        """Run matrix products and convolutions in this format; a no-op in fp32."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")

    def place(self, network: nn.Module) -> None:
        """Move the network to the device; on a CPU, keep depthwise layers with strides or wide kernels in float32.

        Their backward pass takes two to three times as long in bf16 (torch 2.15, oneDNN): a quarter of MobileViT's
        step, a fifth of EfficientNet-Lite0's.
        """
        network.to(self.device)
        if self.device.type == "cpu" and self.name != "fp32":
            for module in network.modules():
                if isinstance(module, nn.Conv2d) and _is_slow(module):
                    module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
                    # Replaces the layer's own method.
                    setattr(module, "forward", torch.autocast("cpu", enabled=False)(module.forward))  # noqa: B010

    def scaler(self) -> torch.amp.GradScaler:
        """Gradient scaling, which fp16 needs for its narrow range; a no-op otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def _is_slow(layer: nn.Conv2d) -> bool:
    is_depthwise = layer.groups == layer.in_channels > 1
    return is_depthwise and (max(layer.stride) > 1 or max(layer.kernel_size) > 3)


def resolve(device: str, precision: str) -> Compute:
    """Turn the settings, `auto` included, into what this machine computes with.

    Raises UserError: CUDA is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device = cuda, but torch finds no CUDA device: set it to auto or cpu")
    if precision != "auto":
        return Compute(torch.device(device), precision, "as set in training.precision")
    return Compute(torch.device(device), *_best(device))


def _best(device: str) -> tuple[str, str]:
    if device == "cpu":
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
            return "bf16", "this CPU has bf16 instructions (AVX-512 or AMX)"
        return "fp32", "this CPU has no bf16 instructions; bf16 would be slower"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "this GPU has bf16 units"
    if torch.cuda.get_device_capability() >= (7, 0):
        return "fp16", "this GPU has fp16 tensor cores and no bf16 units"
    return "fp32", "this GPU has no half-precision units"
