"""`image-classifier ui`: open MLflow on this machine alone."""

import socket
import subprocess
import sys

from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.tracking.server import connection

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # of which MLflow can show the runs; others are servers


def main(port: int) -> int:
    """Serve the store that the runs are in, until Ctrl-C; say where its runs are.

    MLflow's own front page may open in its view of language models, which shows no training runs.

    Raises UserError: another program listens on the port.
    """
    settings = config.load().mlflow
    address = connection.address(settings)
    if not address.startswith(DATABASES):
        print(f"MLflow runs elsewhere: open {connection.reason(ValueError(address))}")
        return 0
    with socket.socket() as trial:
        if trial.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken by another program, perhaps by an MLflow: choose one with --port")
    try:
        _, experiment = connection.connect(settings)
        page = f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        print(f"the runs: {page}", flush=True)
    except Exception as error:  # such as a deleted experiment, which can be restored there
        print(f"warning: MLflow: {connection.reason(error)}", flush=True)
    words = ["ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", address]
    return subprocess.run([sys.executable, "-m", "mlflow", *words], check=False).returncode
