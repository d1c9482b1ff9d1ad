"""The four stages, each run as `python -m stages.NAME` from the root."""

import sys
import time
from pathlib import Path

# DVC runs temp and queued experiments in a copy of the repository. They must run the library that
# stands beside them, not the one that was installed from the main workspace.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

STARTED = time.perf_counter()


def took() -> str:
    """How long the stage has run."""
    return f"{time.perf_counter() - STARTED:.0f} s"
