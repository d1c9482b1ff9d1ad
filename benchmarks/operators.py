"""Where a step of the default training goes, by operator: MobileViT-Small, batch 8, in this machine's number format.

    python -m benchmarks.operators

torch's profiler over some steps at 64 and at 160 px; an operator's time is its own, without those that it calls. The
profiler makes small operators seem longer than they are, and Python's time between operators is in none.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import pairs, records
from benchmarks.images import CLASSES, write_made_shards
from image_classifier.core import config, runtime
from image_classifier.images.shards import ShardReader
from image_classifier.model import numerics
from image_classifier.model.batches import batches
from image_classifier.training.build import build_network, input_normalization
from image_classifier.training.modes import train_mode
from image_classifier.training.trainer import Trainer

GROUPS = {  # in the names of operators; the first that fits
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "slow_conv", "thnn_conv"),
    "linear layers and attention": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "softmax"),
    "batch and layer norm": ("batch_norm", "layer_norm"),
    "SiLU": ("silu",),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::clone", "aten::contiguous"),
    "optimizer": ("adamw", "AdamW", "zero_grad", "_foreach"),
}
OTHERS = "all other operators"
SIZES, BATCH_SIZE, STEPS = (64, 160), 8, 16
COLUMNS = ("operators", *(f"{size} px" for size in SIZES))


def main() -> None:
    """Profile at each size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    runtime.configure(None)
    params, compute = config.load(pairs.ROOT / "params.yaml"), numerics.resolve("cpu", "auto")
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", BATCH_SIZE * STEPS, max(SIZES))
        train = ShardReader(Path(folder) / "train")
        network = build_network(params.model, CLASSES, max(SIZES), seed=0)
        normalize = input_normalization("imagenet", params.model)
        training = params.training.model_copy(update={"batch_size": BATCH_SIZE})
        trainer = Trainer(network, normalize, compute, training, 0, train, train)
        train_mode(network)

        def steps(size: int) -> float:
            start = time.perf_counter()
            for step, (images, labels) in enumerate(batches(train, BATCH_SIZE)):
                trainer.stepper.step(images, labels, step, size)
            return 1000 * (time.perf_counter() - start) / STEPS

        shares, lengths = {}, {}
        for size in SIZES:
            steps(size)
            lengths[size] = steps(size)
            with profile(activities=[ProfilerActivity.CPU]) as found:
                steps(size)
            shares[size] = grouped({event.key: event.self_cpu_time_total for event in found.key_averages()})
    rows = [[name, *(f"{shares[size][name]:.0%}" for size in SIZES)] for name in (*GROUPS, OTHERS)]
    rows.append(["a step, unprofiled", *(f"{lengths[size]:.0f} ms" for size in SIZES)])
    name, title = "operators" if arguments.record else None, "Where a step goes: MobileViT-Small, batch 8"
    note = f"Number format: {compute.name}, {torch.get_num_threads()} threads."
    records.publish(name, title, "python -m benchmarks.operators", ["torch", "transformers"], COLUMNS, rows, note)


def grouped(times: dict[str, float]) -> dict[str, float]:
    """The share of each group in all time."""
    found: defaultdict[str, float] = defaultdict(float)
    for operator, spent in times.items():
        group = next((group for group, parts in GROUPS.items() if any(part in operator for part in parts)), OTHERS)
        found[group] += spent / sum(times.values())
    return found


if __name__ == "__main__":
    main()
