"""The exported model in programs that no one here wrote: does each say what evaluate wrote down?

    python -m benchmarks.clients --record clients-digits    # after `dvc repro`, in the workspace with its MLflow store

The README's ten lines run in an environment of their own, with numpy, onnxruntime and Pillow alone; MLflow's server
answers over HTTP on 127.0.0.1. Each client gets the first test images.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import pairs, records

COUNT = 64  # test images
MODEL, EXPORT = "models:/image-classifier@champion", Path("models/export")
STORE = f"sqlite:///{pairs.ROOT / 'mlflow.db'}"


def pipeline(images: np.ndarray) -> list[tuple[str, float]]:
    """transformers' own pipeline on the Hugging Face folder."""
    import transformers

    classify = transformers.pipeline("image-classification", model=str(EXPORT / "hf"), device="cpu")
    found = classify([Image.fromarray(image) for image in images], top_k=1, function_to_apply="softmax")
    return [(best["label"], best["score"]) for (best,) in found]


def ten_lines(images: np.ndarray) -> list[tuple[str, float]]:
    """The lines of the README, in an environment without torch and without this project."""
    (lines,) = re.findall(r"```python\n(.*?)```", (pairs.ROOT / "README.md").read_text(), re.S)
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "venv/bin/python"
        subprocess.run([sys.executable, "-m", "venv", Path(folder) / "venv"], check=True)
        packages = [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime", "pillow")]
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, stderr=subprocess.DEVNULL)
        assert subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL, check=False).returncode
        (Path(folder) / "models").symlink_to(Path("models").resolve())
        script, found = Path(folder) / "ten_lines.py", []
        script.write_text(lines)
        for image in images:
            Image.fromarray(image).save(Path(folder) / "image.png")
            printed = subprocess.run([python, script], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
            name, probability = printed.rsplit(maxsplit=1)
            found.append((name, float(probability)))
    return found


def pyfunc(images: np.ndarray) -> list[tuple[str, float]]:
    """MLflow's pyfunc, the model loaded by its alias."""
    import mlflow

    mlflow.set_tracking_uri(STORE)
    return _named(mlflow.pyfunc.load_model(MODEL).predict({"image": images})["probabilities"])


def served(images: np.ndarray) -> list[tuple[str, float]]:
    """`mlflow models serve` in the local environment, asked over HTTP."""
    return _named([rows[0] for rows in answers((image[None] for image in images), STORE)])


def answers(batches: Iterable[np.ndarray], store: str) -> list[list]:
    """What a server of the model in this MLflow store says of uint8 [N, size, size, 3]: probabilities [N, classes]."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["mlflow", "models", "serve", "-m", MODEL, "--env-manager", "local"]
    server = subprocess.Popen(
        [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                break
            time.sleep(0.2)
        found = []
        for batch in batches:
            body = json.dumps({"inputs": {"image": batch.tolist()}}).encode()
            address, headers = f"http://127.0.0.1:{port}/invocations", {"Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=60) as answer:
                found.append(json.load(answer)["predictions"])
    finally:
        server.terminate()
        server.wait()
    return [rows["probabilities"] if isinstance(rows, dict) else rows for rows in found]


def _named(probabilities: list) -> list[tuple[str, float]]:
    names = list(json.loads((EXPORT / "hf/config.json").read_text())["id2label"].values())
    return [(names[int(np.argmax(row))], float(np.max(row))) for row in probabilities]


COLUMNS = ("client", "same class as evaluate", "largest difference of confidence")
CLIENTS: dict[str, Callable] = {
    "`transformers.pipeline` on `models/export/hf`": pipeline,
    "the README's ten lines, without torch": ten_lines,
    "`mlflow.pyfunc.load_model`, by alias": pyfunc,
    "`mlflow models serve`, over HTTP": served,
}


def main() -> None:
    """Ask every client, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="NAME", help="keep the table as benchmarks/records/NAME.json")
    options = parser.parse_args()
    from image_classifier.core import config
    from image_classifier.images.shards import ShardReader

    os.chdir(pairs.ROOT)
    params, rows = config.load(), pd.read_csv("metrics/evaluate/predictions.csv", dtype={"predicted": str})[:COUNT]
    images = ShardReader("data/shards/test").gather(np.arange(len(rows))).numpy()
    shown = []
    for name, ask in CLIENTS.items():
        print(f"clients: {name}", file=sys.stderr)
        found = pd.DataFrame(ask(images), columns=["predicted", "confidence"])
        same = (found["predicted"].astype(str) == rows["predicted"]).sum()
        shown.append([name, f"{same} of {len(rows)}", f"{(found['confidence'] - rows['confidence']).abs().max():.1e}"])
    title = f"Clients: {params.model.name} on {params.data.source}, {params.data.image_size} px"
    packages = ["transformers", "onnxruntime", "mlflow"]
    records.publish(options.record, title, "python -m benchmarks.clients", packages, COLUMNS, shown)


if __name__ == "__main__":
    main()
