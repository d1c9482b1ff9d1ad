"""What bounds a training step on this CPU: its arithmetic and the bytes it moves, against what this machine can do.

    python -m benchmarks.roofline

Batches of 32 at 160 px, forward and backward. FLOP are those of matrix products and convolutions; bytes are those of
all tensors that an operator takes or returns, each once, as if none were found in a cache. The measured rate is that
of whole steps, the optimizer included.

The arithmetic peak is the better of a product of 2,048 x 2,048 matrices and of a 3 x 3 convolution of 256 channels: on
AMD's processors MKL, which multiplies torch's fp32 matrices, is slower than oneDNN, which convolves. The other peak is
that of a copy of 256 MB. All on all cores.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pairs, records
from benchmarks.images import CLASSES
from benchmarks.networks import NETWORKS, PRECISIONS
from benchmarks.training import SIZE, ours
from image_classifier.core import config, runtime
from image_classifier.model import numerics
from image_classifier.training.build import build_network

COLUMNS = (
    "network, precision",
    "GFLOP an image",
    "MB moved an image",
    "images/s by arithmetic alone",
    "images/s by memory alone",
    "measured, images/s",
    "share of the arithmetic peak",
)
BATCH_SIZE, STEPS, ROUNDS = 32, 6, 2
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Moved(TorchDispatchMode):
    """Counts the bytes of all tensors that operators take or return; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not (func.is_view or any(name in func.__name__ for name in ("empty", "_unsafe_view"))):
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
        return result


def main() -> None:
    """Run all in turn, and print the table; with the name of a way, measure that one alone."""
    ways = [f"{network}, {precision}" for network in NETWORKS for precision in PRECISIONS]
    arguments = pairs.parsed(__doc__, ways)
    if arguments.way:
        print(json.dumps(measure(*arguments.way.split(", "))))
        return
    rows, peaks = [], defaultdict(list)
    for way, runs in pairs.in_turn("roofline", ways, ROUNDS).items():
        found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        peaks[way.split(", ")[1]].append((found["flops"] / 1e9, found["bandwidth"] / 1e9))
        arithmetic, memory = found["flops"] / found["work"], found["bandwidth"] / found["moved"]
        cells = f"{found['work'] / 1e9:.2f}", f"{found['moved'] / 1e6:.0f}", f"{arithmetic:.0f}", f"{memory:.0f}"
        rows.append([way, *cells, f"{found['rate']:.1f}", f"{found['rate'] / arithmetic:.0%}"])
    name, packages = "roofline" if arguments.record else None, ["torch", "transformers", "timm"]
    middle = {name: map(statistics.median, zip(*found, strict=True)) for name, found in peaks.items()}
    told = "; ".join("{} {:.0f} GFLOP/s, {:.0f} GB/s".format(name, *found) for name, found in middle.items())
    note = f"Peaks measured beside each, their medians: {told}."
    title = "What bounds a training step, 160 px, batch 32"
    records.publish(name, title, "python -m benchmarks.roofline", packages, COLUMNS, rows, note)


def measure(network: str, precision: str) -> dict[str, float]:
    """FLOP/s and bytes/s of this machine; FLOP and bytes that a step takes an image; images/s of training."""
    rate = ours(precision, steps=STEPS, batch_size=BATCH_SIZE, model=NETWORKS[network]).rate()
    runtime.configure(None)
    square, long = torch.rand(2048, 2048).to(DTYPES[precision]), torch.rand(2**26)
    kernel = torch.rand(256, 256, 3, 3).to(DTYPES[precision], memory_format=torch.channels_last)
    pixels = torch.rand(16, 256, 32, 32).to(DTYPES[precision], memory_format=torch.channels_last)
    convolution = 2 * 16 * 32**2 * kernel.numel() / seconds(lambda: F.conv2d(pixels, kernel, padding=1))
    flops = max(2 * 2048**3 / seconds(lambda: square @ square), convolution)
    bandwidth = 2 * long.nbytes / seconds(lambda: torch.empty_like(long).copy_(long))
    settings = config.load(pairs.ROOT / "params.yaml").model.model_copy(update={"name": NETWORKS[network]})
    model, compute = build_network(settings, CLASSES, SIZE, seed=0), numerics.resolve("cpu", precision)
    compute.place(model.train())
    with Moved() as moved:
        with FlopCounterMode(display=False) as forward, compute.autocast():
            logits = model(pixel_values=torch.rand(BATCH_SIZE, 3, SIZE, SIZE)).logits
        logits.float().sum().backward()
    # A backward pass is two products for each forward one; torch's counter has those of grouped convolutions wrong.
    each = {"work": 3 * forward.get_total_flops() / BATCH_SIZE, "moved": moved.bytes / BATCH_SIZE}
    return {"flops": flops, "bandwidth": bandwidth, "rate": rate} | each


def seconds(run: Callable[[], object], times: int = 5) -> float:
    """The least time that it took."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    main()
