"""Which device and number format are chosen, as far as that can be seen without a GPU."""

import os

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.model import numerics
from image_classifier.training import distributed, stepper
from tests.helpers.architectures import TINY
from tests.helpers.project import DEFAULTS

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # what the locked torch is built for


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of a compute capability, and a torch that is built for some."""

    def pretend(capability: tuple[int, int], built: list[str] = WHEEL, count: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0))

    return pretend


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((7, 5), WHEEL, "fp16"),
        ((8, 0), WHEEL, "bf16"),
        ((8, 9), WHEEL, "bf16"),  # runs what is built for 8.6
        ((9, 0), ["sm_90a"], "bf16"),
        ((12, 1), ["sm_80", "compute_90"], "bf16"),  # compiled when it is first used
    ],
)
def test_a_gpu_with_kernels_is_used(gpu, capability, built, expected):
    gpu(capability, built)
    chosen = numerics.resolve("auto", "auto")
    assert (chosen.device.type, chosen.name) == ("cuda", expected)


@pytest.mark.parametrize(("capability", "built"), [((7, 0), WHEEL), ((6, 1), WHEEL), ((9, 0), ["sm_80", "sm_100"])])
def test_a_gpu_without_kernels_is_named_and_left_out(gpu, capability, built):
    gpu(capability, built)
    chosen = numerics.resolve("auto", "auto")
    told = f"has no kernels for Some GPU (sm_{capability[0]}{capability[1]}), only for sm_"
    assert chosen.device.type == "cpu" and "the GPU is left out: torch" in chosen.reason and told in chosen.reason
    with pytest.raises(UserError, match=r"training.device = cuda, but torch .* has no kernels for Some GPU"):
        numerics.resolve("cuda", "auto")
    assert "GPU" not in numerics.resolve("cpu", "auto").reason  # nobody asked for one


def test_every_image_size_is_compiled_once_for_each_length_of_a_batch(monkeypatch):
    graphs = []
    plain = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *a, **b: plain(*a, **b, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    )
    tiny = AutoConfig.for_model(**{**TINY["mobilevit"], "model_type": "mobilevit", "num_labels": 10})
    sizes = (32, 64, 96, 128, 160, 192)
    forward = stepper.compiled(AutoModelForImageClassification.from_config(tiny), len(sizes))
    for size in (*sizes, 32):
        for length in (3, 2, 3):
            forward(pixel_values=torch.rand(length, 3, size, size)).logits.sum().backward()
    assert len(graphs) == 2 * len(sizes)


def test_a_driver_that_torch_cannot_use_is_told(tmp_path, monkeypatch):
    (tmp_path / "version").touch()
    monkeypatch.setattr(numerics, "DRIVER", tmp_path / "version")
    assert "an NVIDIA driver is loaded, but torch" in numerics.resolve("auto", "auto").reason
    with pytest.raises(UserError, match="its driver is too old, or CUDA_VISIBLE_DEVICES hides it"):
        numerics.resolve("cuda", "fp32")


def test_fp32_is_fp32_and_tf32_a_format_of_its_own():
    network, device = nn.Linear(2, 2), torch.device("cpu")
    for name, allowed in (("tf32", True), ("fp32", False), ("bf16", False)):
        chosen = numerics.Compute(device, name, "")
        chosen.place(network)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
        with chosen.autocast():
            assert network(torch.zeros(1, 2)).dtype == (torch.bfloat16 if name == "bf16" else torch.float32)


def test_tf32_is_fp32_on_a_cpu():
    chosen = numerics.resolve("cpu", "tf32")
    assert (chosen.name, chosen.reason) == ("fp32", "TF32 is a format of GPUs")


def test_compiling_needs_a_compiler_and_headers(tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(stepper.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("CC", "gcc")
    assert stepper.compile_fault() is None
    (tmp_path / "Python.h").unlink()
    assert "headers are missing" in stepper.compile_fault()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no C compiler" in stepper.compile_fault()


@pytest.mark.parametrize(("batch_size", "gpus", "count"), [(16, 8, 1), (64, 8, 2), (128, 2, 2), (1024, 8, 8)])
def test_as_many_processes_as_the_batch_is_worth(gpu, monkeypatch, batch_size, gpus, count):
    gpu((9, 0), count=gpus)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    asked: list[list[str]] = []
    monkeypatch.setattr(distributed.torchrun, "parse_args", lambda words: asked.append(words))
    monkeypatch.setattr(distributed.torchrun, "run", lambda _: None)
    training = config.load(DEFAULTS).training.model_copy(update={"batch_size": batch_size})
    assert distributed.launch("train", training, torch.device("cuda")) is (count > 1)
    assert [words[words.index("--nproc-per-node") + 1] for words in asked] == ([str(count)] if count > 1 else [])
