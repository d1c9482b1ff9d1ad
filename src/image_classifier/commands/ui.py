"""`image-classifier ui`: open MLflow on this machine alone."""

import subprocess
import sys

from image_classifier.core import config
from image_classifier.tracking.server import connection


def main() -> int:
    """Serve the store that the runs are in, until Ctrl-C."""
    address = connection.address(config.load().mlflow)
    if not address.startswith("sqlite:"):
        print(f"MLflow runs elsewhere: open {connection.reason(ValueError(address))}")
        return 0
    words = ["ui", "--host", "127.0.0.1", "--backend-store-uri", address]
    return subprocess.run([sys.executable, "-m", "mlflow", *words], check=False).returncode
