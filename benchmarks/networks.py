"""Training on this CPU: four networks against Hugging Face's Trainer, 160 px, batches of 8, 32 and 128, same precision.

    python -m benchmarks.networks

The Trainer runs on a plain torchvision transform, with its defaults, once in fp32 and once in bf16 (its `bf16=True`);
the same networks from the same seeds, the same images. Every network, precision and side has a process of its own.
"""

import json
import resource
import statistics

from benchmarks import pairs, records
from benchmarks.training import ours, trainer

NETWORKS = {
    "MobileViT-Small": "apple/mobilevit-small",
    "EfficientNet-Lite0": "timm/tf_efficientnet_lite0",
    "ViT-Tiny/16": "timm/vit_tiny_patch16_224",
    "ResNet-18": "timm/resnet18",
}
PRECISIONS, SIDES, ROUNDS = ("fp32", "bf16"), ("ours", "Trainer"), 2
STEPS = {8: 16, 32: 4, 128: 2}  # batch size: steps counted, in this order, so that memory grows
COLUMNS = (
    "network, precision",
    "batch",
    "ours, images/s",
    "Trainer, images/s",
    "times Trainer",
    "peak memory, GiB, ours and Trainer",
    "CPU seconds per 100 images, ours and Trainer",
)


def main() -> None:
    """Run all in turn, and print the table; with the name of a way, measure that one alone."""
    ways = [f"{network}, {precision}, {side}" for network in NETWORKS for precision in PRECISIONS for side in SIDES]
    arguments = pairs.parsed(__doc__, ways)
    if arguments.way:
        print(json.dumps(measure(*arguments.way.split(", "))))
        return
    measured = pairs.in_turn("networks", ways, ROUNDS)
    rows = []
    for network in NETWORKS:
        for precision in PRECISIONS:
            mine, theirs = (measured[f"{network}, {precision}, {side}"] for side in SIDES)
            rows += [[f"{network}, {precision}", *row(str(size), mine, theirs)] for size in STEPS]
    name = "networks" if arguments.record else None
    packages, title = ["torch", "transformers", "accelerate", "timm"], "Training on CPU, 160 px, the same precision"
    note = f"Medians of {ROUNDS} rounds; the least and largest ratio of a round in parentheses."
    records.publish(name, title, "python -m benchmarks.networks", packages, COLUMNS, rows, note)


def measure(network: str, precision: str, side: str) -> dict[str, dict[str, float]]:
    """For each batch size: images per second, peak memory in GiB, CPU seconds per image."""
    found = {}
    for size, steps in STEPS.items():
        if side == "ours":
            pace = ours(precision, steps=steps, batch_size=size, model=NETWORKS[network])
        else:
            pace = trainer(precision == "bf16", steps=steps, batch_size=size, model=NETWORKS[network])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB to GiB
        found[str(size)] = {"rate": pace.rate(), "peak": peak, "cpu": pace.per_image()[1]}
    return found


def row(size: str, mine: list[dict], theirs: list[dict]) -> list[str]:
    """One batch size: cells after the name of the network."""

    def median(runs: list[dict], what: str) -> float:
        return statistics.median(run[size][what] for run in runs)

    ratios = [a[size]["rate"] / b[size]["rate"] for a, b in zip(mine, theirs, strict=True)]
    times = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    rates = [f"{median(runs, 'rate'):.1f}" for runs in (mine, theirs)]
    peaks = " and ".join(f"{median(runs, 'peak'):.1f}" for runs in (mine, theirs))
    seconds = " and ".join(f"{100 * median(runs, 'cpu'):.1f}" for runs in (mine, theirs))
    return [size, *rates, times, peaks, seconds]


if __name__ == "__main__":
    main()
