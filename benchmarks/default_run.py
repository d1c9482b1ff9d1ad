"""The default run, all five stages: test accuracy, seconds and memory, for five seeds.

    python -m benchmarks.default_run

Each seed runs `dvc repro` in a fresh clone of the commit, with nothing else running. A seed also decides which digits
are the test images.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks import records

COLUMNS = ("seed", "test accuracy, of 360", "seconds", "peak memory, GiB")
SEEDS = 5


def main() -> None:
    """Run every seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    arguments = parser.parse_args()
    found = []
    for seed in range(SEEDS):
        found.append(run(seed))
        print("default_run: seed {}: {:.4f}, {:.0f} s, {:.1f} GiB".format(seed, *found[-1]), file=sys.stderr)
    rows = [[str(seed), *cells(*figures)] for seed, figures in enumerate(found)]
    accuracies, seconds, peaks = zip(*found, strict=True)
    rows.append(["mean", *cells(statistics.mean(accuracies), statistics.mean(seconds), max(peaks))])
    name = "default_run" if arguments.record else None
    packages, note = ["torch", "transformers", "dvc"], "Memory: of the largest process, and in the last row the most."
    records.publish(name, "The default run", "python -m benchmarks.default_run", packages, COLUMNS, rows, note)


def run(seed: int) -> tuple[float, float, float]:
    """Test accuracy, seconds of `dvc repro`, GiB of its largest process so far."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", records.ROOT, folder], check=True)
        params = Path(folder) / "params.yaml"
        yaml = YAML()
        values = yaml.load(params)
        values["seed"] = seed
        yaml.dump(values, params)
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        start = time.perf_counter()
        subprocess.run(["dvc", "repro"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        accuracy = json.loads((Path(folder) / "metrics/evaluate/metrics.json").read_text())["accuracy"]
    return accuracy, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # KiB to GiB


def cells(accuracy: float, seconds: float, peak: float) -> list[str]:
    """As the table shows them."""
    return [f"{accuracy:.4f}", f"{seconds:.0f}", f"{peak:.1f}"]


if __name__ == "__main__":
    main()
