"""The fast path computes what a plain loop computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from image_classifier.core import config, runtime
from image_classifier.images.shards import ShardReader
from image_classifier.model import numerics
from image_classifier.model.batches import batches, num_batches, shuffled
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.trainer import Trainer

RATE, STEPS = 0.01, 6


def make_trainer(name: str, rate: float) -> Trainer:
    params = config.load()
    reader = ShardReader("data/shards/train")
    network = build_network(params.model, reader.class_names, 64, 0)
    normalize = input_normalization("imagenet", params.model)
    constant = {"resolution_schedule": None, "learning_rate": rate, "scheduler": "none", "warmup_fraction": 0.0}
    plain = {"adam_beta2": 0.999, "label_smoothing": 0.0}
    training = params.training.model_copy(update=constant | plain)
    return Trainer(network, normalize, numerics.resolve("cpu", name), training, 0, reader, reader)


def plain_losses(precision: torch.dtype = torch.float32) -> list[float]:
    """Contiguous tensors, an unfused optimizer, pixels normalized as torchvision documents it, torch's own autocast."""
    params, reader = config.load(), ShardReader("data/shards/train")
    network = build_network(params.model, reader.class_names, 64, 0).to(memory_format=torch.contiguous_format).train()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    weights = [{"params": [p], "weight_decay": params.training.weight_decay} for p in network.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.999), fused=False, foreach=False)
    losses = []
    order = shuffled(len(reader), 0, 0)
    for step, numbers in enumerate(np.array_split(order, num_batches(len(order), 16))[:STEPS]):
        torch.manual_seed(runtime.derive_seed(0, 0, step))
        pixels = torch.stack([reader.gather(np.array([n]))[0] for n in numbers]).permute(0, 3, 1, 2).contiguous()
        pixels = (pixels / 255 - mean) / std
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            logits = network(pixel_values=pixels).logits
        loss = F.cross_entropy(logits.float(), reader.labels[numbers])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fast_losses(name: str, rate: float = RATE) -> list[float]:
    trainer = make_trainer(name, rate)
    trainer.network.train()
    own = batches(trainer.train, 16, shuffled(len(trainer.train), 0, 0))
    return [
        trainer.stepper.step(images, labels, runtime.derive_seed(0, 0, step), 64)[0].item()
        for step, (images, labels) in zip(range(STEPS), own, strict=False)
    ]


def test_the_fast_path_gives_the_losses_of_a_plain_loop(project):
    # Another memory format sums in another order, and so does another number of threads: the last digits of float32
    # differ, and grow with the steps. Two threads are what the bounds were measured with.
    torch.set_num_threads(2)
    plain = plain_losses()
    np.testing.assert_allclose(fast_losses("fp32"), plain, rtol=0, atol=5e-4)
    # How far bf16 strays depends on the processor's kernels: at most twice as far as a plain loop in bf16 does on it.
    strays = np.abs(np.subtract(plain_losses(torch.bfloat16), plain)).max()
    np.testing.assert_allclose(fast_losses("bf16"), plain, rtol=0, atol=2 * strays)
    other = fast_losses("fp32", rate=2 * RATE)  # a wrong learning rate would be seen
    assert np.abs(np.subtract(other, plain)).max() > max(5e-3, 2 * strays)


@pytest.mark.parametrize(
    ("kernel", "stride", "expected"), [(3, 1, torch.bfloat16), (3, 2, torch.float32), (5, 1, torch.float32)]
)
def test_depthwise_convolutions_that_are_slow_in_bf16_stay_in_float32(kernel, stride, expected):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, kernel, stride=stride, padding=1, groups=8)
    chosen = numerics.resolve("cpu", "bf16")
    inputs = torch.randn(2, 8, 12, 12)
    plain = layer(inputs)
    chosen.place(network := nn.Sequential(layer))
    with chosen.autocast():
        outputs = network(inputs)
    assert outputs.dtype == expected
    torch.testing.assert_close(outputs.float(), plain, rtol=0.02, atol=0.02)
