"""The command line: `python -m image_classifier predict|compare|doctor|sync|promote|ui`."""

import argparse
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from image_classifier.errors import UserError, run


def main() -> int:
    """Parse the command and run it; its modules are imported only then."""
    parser = argparse.ArgumentParser(prog="python -m image_classifier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="name what pictures show, with the exported model")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="a picture, or a folder of them")
    predict.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes to show (default 5)")
    predict.add_argument(
        "--threshold", type=_fraction, default=0.0, metavar="P", help="leave out what is less probable"
    )
    predict.add_argument("--json", action="store_true", help="print JSON")
    predict.add_argument("--output", type=Path, metavar="FILE", help="write a table: .csv, .json or .parquet")
    backend = predict.add_mutually_exclusive_group()
    backend.add_argument("--torch", action="store_true", help="compute in torch instead of ONNX Runtime")
    backend.add_argument("--int8", action="store_true", help="compute in int8, where export.int8 made a model for it")
    compare = commands.add_parser("compare", help="say whether one model is better than another on the same pictures")
    for name in ("A", "B"):
        compare.add_argument(name, help="an experiment, a revision, or workspace")
    commands.add_parser("doctor", help="say whether everything is fit to run, and what to do if not")
    commands.add_parser("sync", help="give MLflow what it missed of the present model while it could not be reached")
    commands.add_parser("promote", help="make the present model the champion of the registered model in MLflow")
    commands.add_parser("ui", help="open MLflow on http://127.0.0.1:5000")
    options = parser.parse_args()
    if options.command == "predict":
        from image_classifier import predict

        backend = "torch" if options.torch else "int8" if options.int8 else "onnx"
        return predict.main(options.paths, options.top_k, options.threshold, options.json, options.output, backend)
    if options.command == "compare":
        from image_classifier import compare

        return compare.main(options.A, options.B)
    if options.command in ("sync", "promote"):
        from image_classifier import config, files, tracking

        settings = config.load()
        if subprocess.run([sys.executable, "-m", "dvc", "status", "-q", "-d", "export"], check=False).returncode:
            raise UserError("`dvc status` finds changes, so the metrics may be of another model: run `dvc repro` first")
        model = files.sha256("models/checkpoint/model.safetensors")
        if options.command == "promote":
            name, number = tracking.promote(settings.mlflow, model)
            print(f"version {number} of {name} is the {tracking.ALIAS}: models:/{name}@{tracking.ALIAS}")
            return 0
        run = tracking.sync(settings, model, Path("metrics"), Path("models/export/model.onnx"))
        print(f"MLflow run {run} holds metrics/ and the model")
        return 0
    if options.command == "ui":
        from image_classifier import config, tracking

        address = tracking.address(config.load().mlflow)
        if not address.startswith("sqlite:"):
            print(f"MLflow runs elsewhere: open {tracking.reason(ValueError(address))}")
            return 0
        words = ["ui", "--host", "127.0.0.1", "--backend-store-uri", address]
        return subprocess.run([sys.executable, "-m", "mlflow", *words], check=False).returncode
    from image_classifier import doctor

    return doctor.main()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _fraction(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


if __name__ == "__main__":
    run(main)
