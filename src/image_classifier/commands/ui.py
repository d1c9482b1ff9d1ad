"""`image-classifier ui`: open MLflow on this machine alone."""

import subprocess
import sys

from image_classifier.core import config
from image_classifier.tracking.server import connection


def main() -> int:
    """Serve the store that the runs are in, until Ctrl-C; say where its runs are.

    MLflow's own front page may open in its view of language models, which shows no training runs.
    """
    settings = config.load().mlflow
    address = connection.address(settings)
    if not address.startswith("sqlite:"):
        print(f"MLflow runs elsewhere: open {connection.reason(ValueError(address))}")
        return 0
    try:
        _, experiment = connection.connect(settings)
        page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning"
        print(f"the runs: {page}", flush=True)
    except Exception as error:  # such as a deleted experiment, which can be restored there
        print(f"warning: MLflow: {connection.reason(error)}", flush=True)
    words = ["ui", "--host", "127.0.0.1", "--backend-store-uri", address]
    return subprocess.run([sys.executable, "-m", "mlflow", *words], check=False).returncode
