"""Two ways to do one thing, measured in turn, each in a process of its own."""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from image_classifier.core import provenance, runtime

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"

Measurement = Callable[[], float]


def main(title: str, unit: str, ways: dict[str, Measurement], packages: Sequence[str], pairs: int = 3) -> None:
    """The command line of a benchmark: no argument runs it; the name of a way measures that one alone.

    Args:
        unit: of what a way returns; more is better. Each way is compared with the last, the peer.
        packages: whose versions matter.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("way", nargs="?", choices=list(ways), help="measure one way, in this process")
    parser.add_argument("--record", action="store_true", help=f"put the figures into {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.way:
        rate = ways[arguments.way]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB to GiB
        print(json.dumps({"rate": rate, "peak_gib": peak}))
        return
    module = Path(sys.argv[0]).stem
    measured = in_turn(module, list(ways), pairs)
    text = _table(title, unit, measured, f"python -m benchmarks.{module}", packages)
    print(text)
    if arguments.record:
        record(module, text)


def in_turn(module: str, ways: Sequence[str], pairs: int = 3) -> dict[str, list[dict]]:
    """What `python -m benchmarks.MODULE WAY` prints as JSON in its last line, of each way, several times."""
    measured: dict[str, list[dict]] = {way: [] for way in ways}
    for number in range(pairs):
        for way in ways:  # in turn, so that a slow minute of the machine falls on all
            print(f"{module}: {way}, {number + 1} of {pairs}", file=sys.stderr)
            command = [sys.executable, "-m", f"benchmarks.{module}", way]
            output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured[way].append(json.loads(output.splitlines()[-1]))
    return measured


def _table(title: str, unit: str, measured: dict[str, list[dict]], command: str, packages: Sequence[str]) -> str:
    *_, peer = measured
    lines = [f"### {title}", "", f"`{command}`, {environment(packages)}", ""]
    lines += [
        f"| way | {unit}, median | least to most | peak memory of the main process, GiB | times the {peer}'s rate |"
    ]
    lines += ["|---|---|---|---|---|"]
    for way, runs in measured.items():
        rates = [run["rate"] for run in runs]
        ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(runs, measured[peer], strict=True)]
        ratio = "" if way == peer else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        peak = f"{max(run['peak_gib'] for run in runs):.1f}"
        spread = f"{min(rates):,.4g} to {max(rates):,.4g}"
        lines.append(f"| {way} | {statistics.median(rates):,.4g} | {spread} | {peak} | {ratio} |")
    return "\n".join(lines)


def environment(packages: Sequence[str]) -> str:
    """The hardware and versions that a figure holds for, in one line."""
    facts = provenance.environment()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    commit = facts["git.commit"][:7] + (" with changes" if facts["git.dirty"] == "true" else "")
    cores = runtime.cpus()
    return f"{cores} cores of {facts['processor']}, Python {platform.python_version()}, {versions}, commit {commit}"


def record(name: str, text: str) -> None:
    """Replace what RESULTS.md holds between the marks of this name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = RESULTS.read_text()
    before, rest = page.split(start)
    _, after = rest.split(end)
    RESULTS.write_text(f"{before}{start}\n{text}\n{end}{after}")
