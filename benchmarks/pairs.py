"""Two ways to do one thing, measured in turn, each in a process of its own."""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.records import ROOT

Measurement = Callable[[], float]


def parsed(description: str, ways: Collection[str]) -> argparse.Namespace:
    """The command line of a benchmark: no argument runs it; the name of a way measures that one alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="?", choices=list(ways), help="measure one way, in this process")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/records")
    return parser.parse_args()


def main(title: str, unit: str, ways: dict[str, Measurement], packages: Sequence[str], pairs: int = 3) -> None:
    """Measure all ways in turn, and print the table.

    Args:
        unit: of what a way returns; more is better. Each way is compared with the last, the peer.
        packages: whose versions matter.
    """
    arguments = parsed(title, ways)
    if arguments.way:
        rate = ways[arguments.way]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB to GiB
        print(json.dumps({"rate": rate, "peak_gib": peak}))
        return
    module = Path(sys.argv[0]).stem
    rows = _rows(in_turn(module, list(ways), pairs))
    name = module if arguments.record else None
    records.publish(name, title, f"python -m benchmarks.{module}", packages, columns(unit, list(ways)[-1]), rows)


def own_memory() -> float:
    """MiB of this process's own memory, without the page cache."""
    (size,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(size) / 1024


def columns(unit: str, peer: str) -> tuple[str, ...]:
    """The columns of such a table."""
    return "way", f"{unit}, median", "least to most", "peak memory of the main process, GiB", f"times {peer}"


def alone(module: str, *words: str) -> Any:
    """What `python -m benchmarks.MODULE WORDS` prints as JSON in its last line."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def over_seeds(module: str, folder: str, ways: Mapping[str, str], seeds: int) -> dict[str, list[dict]]:
    """What each way gives with each seed: `--one` takes a way's argument and the seed, and prints its accuracy."""
    measured: dict[str, list[dict]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way, argument in ways.items():
            measured[way].append(alone(module, folder, "--one", argument, str(seed)))
            print(f"{module}: {way}, seed {seed}: accuracy {measured[way][-1]['accuracy']:.4f}", file=sys.stderr)
    return measured


def in_turn(module: str, ways: Sequence[str], pairs: int = 3) -> dict[str, list[dict]]:
    """What `python -m benchmarks.MODULE WAY` prints as JSON in its last line, of each way, several times."""
    measured: dict[str, list[dict]] = {way: [] for way in ways}
    for number in range(pairs):
        for way in ways:  # in turn, so that a slow minute of the machine falls on all
            print(f"{module}: {way}, {number + 1} of {pairs}", file=sys.stderr)
            measured[way].append(alone(module, way))
    return measured


def _rows(measured: dict[str, list[dict]]) -> list[list[str]]:
    *_, peer = measured
    rows = []
    for way, runs in measured.items():
        rates = [run["rate"] for run in runs]
        ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(runs, measured[peer], strict=True)]
        ratio = "" if way == peer else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        peak = f"{max(run['peak_gib'] for run in runs):.1f}"
        spread = f"{min(rates):,.4g} to {max(rates):,.4g}"
        rows.append([way, f"{statistics.median(rates):,.4g}", spread, peak, ratio])
    return rows
