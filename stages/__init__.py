"""The stages of the pipeline, each run as `python -m stages.NAME` from the root."""

import sys
from pathlib import Path

# DVC runs temp and queued experiments in a copy of the repository. They must run the library that
# stands beside them, not the one that was installed from the main workspace.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
