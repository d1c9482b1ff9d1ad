"""Device and number format, chosen once, with the reason."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from image_classifier.core.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast; fp32 and tf32 need none
DRIVER = Path("/proc/driver/nvidia/version")  # there where NVIDIA's driver is loaded
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")  # such as sm_90a: compute capability 9.0


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
        """Run matrix products and convolutions in this format; a no-op in fp32 and tf32."""
        return torch.autocast(self.device.type, DTYPES.get(self.name), enabled=self.name in DTYPES)

    def place(self, network: nn.Module) -> None:
        """Move the network to the device, and set whether float32 may be TF32 there, in this whole process.

        On a CPU, depthwise layers with strides or wide kernels stay in float32: their backward pass takes two to three
        times as long in bf16 (torch 2.15, oneDNN), a quarter of MobileViT's step, a fifth of EfficientNet-Lite0's.
        """
        network.to(self.device)
        torch.set_float32_matmul_precision("high" if self.name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.name == "tf32"
        if self.device.type == "cpu" and self.name in DTYPES:
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

    Raises UserError: CUDA is asked for, and there is no GPU that torch can use.
    """
    fault = _gpu_fault()
    usable = torch.cuda.is_available() and fault is None
    if device == "cuda" and not usable:
        raise UserError(f"training.device = cuda, but {fault or 'torch finds no CUDA device'}: set it to auto or cpu")
    kind = "cuda" if device == "auto" and usable else device.replace("auto", "cpu")
    name, reason = _best(kind) if precision == "auto" else (precision, "as set in training.precision")
    if name == "tf32" and kind == "cpu":
        name, reason = "fp32", "TF32 is a format of GPUs"
    if device == "auto" and fault:
        reason += f"; the GPU is left out: {fault}"
    return Compute(torch.device(kind), name, reason)


def _gpu_fault() -> str | None:
    """Why torch cannot use the GPU that is there; None if it can, or if there is none."""
    if not torch.cuda.is_available():
        hidden = "its driver is too old, or CUDA_VISIBLE_DEVICES hides it"
        if DRIVER.is_file():
            return f"an NVIDIA driver is loaded, but torch {torch.__version__} cannot use a GPU ({hidden})"
        return None
    own, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    for kind, major, minor in (found.groups() for name in built if (found := ARCHITECTURE.fullmatch(name))):
        theirs = int(major), int(minor)
        # Kernels run on what has the same major number; code that is yet to be compiled on all that is newer.
        if theirs <= own and (kind == "compute" or theirs[0] == own[0]):
            return None
    name = f"{torch.cuda.get_device_name()} (sm_{own[0]}{own[1]})"
    return f"torch {torch.__version__} has no kernels for {name}, only for {', '.join(built)}"


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
