"""Training state outside DVC's outs, so that a killed run goes on from its last finished epoch.

DVC deletes a stage's outs before it runs the stage, so the state lives in `.resume/<fingerprint>`
of the real repository. Any other input has another fingerprint and starts afresh.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from image_classifier import files, runtime
from image_classifier.config import Config
from image_classifier.precision import Precision


def fingerprint(config: Config, precision: Precision, *data: Path) -> str:
    """A hash of all that decides the trained model: params, data, code and versions.

    Args:
        data: index files of the shards, which hold the checksums of the pictures.
    """
    facts = {
        "params": config.model_dump(mode="json", exclude={"evaluation", "export", "mlflow"}),
        "data": [files.sha256(path) for path in data],
        "pretrained": [files.sha256(path) for path in sorted(Path(config.model.name).glob("*")) if path.is_file()],
        "code": {path.name: files.sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))},
        "versions": [sys.version, version("torch"), version("transformers")],
        "precision": f"{precision.name} on {precision.device}",
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class State:
    """The state of one training, under its fingerprint."""

    def __init__(self, key: str):
        self.folder = runtime.repository() / ".resume" / key
        self.path = self.folder / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Keep tensors and plain values, replacing what was kept before."""
        with files.atomic(self.path) as unfinished:
            torch.save(state, unfinished)

    def load(self) -> dict[str, Any] | None:
        """What `save` kept last, or None."""
        if not self.path.is_file():
            return None
        return torch.load(self.path, weights_only=True, map_location="cpu")

    def discard(self) -> None:
        """The run is complete: nothing to resume."""
        files.remove(self.folder)
