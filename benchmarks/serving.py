"""The exported model's speed in each format: transformers' pipeline, torch, ONNX Runtime and, if it is there, int8.

    python -m benchmarks.serving

Images are those of the test split, decoded and at their size, so that the network is what is timed. Latency is that
of one image at a time, throughput the best of a few batch sizes. The figures also go to the model's MLflow run.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import pairs, records

EXPORT, PEER = pairs.ROOT / "models/export", "pipeline"
COLUMNS = ("format", "p50, ms", "p95, ms", "images/s (batch)", f"times {PEER}", "size, MB")
BATCH_SIZES = (1, 8, 32, 128)
FILES = {
    "int8": EXPORT / "model-int8.onnx",
    "onnx": EXPORT / "model.onnx",
    "torch": EXPORT / "hf/model.safetensors",
    PEER: EXPORT / "hf/model.safetensors",
}


def classifier(form: str) -> Callable[[np.ndarray], object]:
    """What gives probabilities for uint8 [N, size, size, 3]."""
    if form == PEER:
        from PIL import Image
        from transformers import pipeline

        classify = pipeline("image-classification", model=str(EXPORT / "hf"), device="cpu")
        return lambda images: classify([Image.fromarray(image) for image in images], batch_size=len(images))
    import torch

    from image_classifier.commands.predict import Predictor

    predictor = Predictor.from_torch(EXPORT / "hf") if form == "torch" else Predictor.from_onnx(FILES[form])
    return lambda images: predictor.classify(torch.from_numpy(images))


def measure(form: str, seconds: float = 3.0) -> dict[str, float]:
    """Latency in milliseconds at batch 1, images per second at the best batch size."""
    from image_classifier.images.shards import ShardReader

    classify = classifier(form)
    test = ShardReader(pairs.ROOT / "data/shards/test")
    images = test.gather(np.arange(max(BATCH_SIZES)) % len(test)).numpy()
    times: dict[int, list[float]] = {}
    for size in BATCH_SIZES:
        classify(images[:size])
        times[size], end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[size]) < 3:
            start = time.perf_counter()
            classify(images[:size])
            times[size].append(time.perf_counter() - start)
    rates = {size: size / statistics.median(found) for size, found in times.items()}
    best = max(rates, key=rates.__getitem__)
    p50, p95 = np.percentile(times[1], [50, 95]) * 1e3
    return {"p50_ms": p50, "p95_ms": p95, "images_per_second": rates[best], "batch_size": best}


def main() -> None:
    """Measure every format in turn, print a table, and give the figures to MLflow."""
    forms = [form for form, path in FILES.items() if path.is_file()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("form", nargs="?", choices=forms, help="measure one format, in this process")
    parser.add_argument("--record", metavar="NAME", help="keep the table as benchmarks/records/NAME.json")
    options = parser.parse_args()
    if not forms:
        sys.exit(f"{EXPORT} is missing: run `dvc repro` first")
    if options.form:
        print(json.dumps(measure(options.form)))
        return
    measured = pairs.in_turn("serving", forms)
    from image_classifier.core import config, files
    from image_classifier.tracking.model_run import add_to_model_run

    params = config.load()
    title = f"Serving: {params.model.name} on {params.data.source}, {params.data.image_size} px"
    values: dict[str, float] = {}
    rows = []
    for form, runs in measured.items():
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        pair = zip(runs, measured[PEER], strict=True)
        ratios = [ours["images_per_second"] / theirs["images_per_second"] for ours, theirs in pair]
        ratio = "" if form == PEER else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        speed = f"{median['images_per_second']:,.0f} ({median['batch_size']:.0f})"
        size = f"{FILES[form].stat().st_size / 1e6:.1f}"
        rows.append([form, f"{median['p50_ms']:.2f}", f"{median['p95_ms']:.2f}", speed, ratio, size])
        values |= {f"serving_{form}_{name}": value for name, value in median.items()}
    packages = ["torch", "onnxruntime", "transformers"]
    records.publish(options.record, title, "python -m benchmarks.serving", packages, COLUMNS, rows)
    weights = files.sha256(EXPORT / "hf/model.safetensors")
    add_to_model_run(params.mlflow, weights, values, [])


if __name__ == "__main__":
    main()
