"""The command line: `image-classifier COMMAND`, or `python -m image_classifier COMMAND`."""

import argparse
import importlib
from contextlib import suppress
from pathlib import Path

from image_classifier.core.entry import exit_with


def main(words: list[str] | None = None) -> int:
    """Parse the command and run `main` of the module in commands/ that has its name, which is imported only then."""
    options = vars(_parser().parse_args(words))
    command = importlib.import_module(f"image_classifier.commands.{options.pop('command')}")
    return command.main(**options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="image-classifier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="classify images with the exported model")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder of them")
    predict.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes to show (default 5)")
    predict.add_argument("--threshold", type=_fraction, default=0.0, metavar="P", help="leave out less likely classes")
    predict.add_argument(
        "--model", type=Path, default=Path("models/export"), metavar="FOLDER", help="default models/export"
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", dest="as_json", help="print JSON")
    form.add_argument("--output", type=Path, metavar="FILE", help="write a table: .csv, .json or .parquet")
    backend = predict.add_mutually_exclusive_group()
    backend.add_argument(
        "--torch", dest="backend", action="store_const", const="torch", default="onnx", help="compute in torch"
    )
    backend.add_argument("--int8", dest="backend", action="store_const", const="int8", help="compute in int8")
    compare = commands.add_parser("compare", help="say whether one model is better than another on the same images")
    compare.add_argument("a", metavar="A", help="an experiment, a revision, or workspace; or one per seed: A1,A2,A3")
    compare.add_argument("b", metavar="B", help="the same number of models, compared with A")
    commands.add_parser("summary", help="say what the last run gave, and what to type next")
    commands.add_parser("doctor", help="check that everything is fit to run, and say what to do if not")
    recipe = commands.add_parser("recipe", help="write a recipe into params.yaml")
    recipe.add_argument("name", metavar="NAME", help="finetune, cifar10, ...: a file in recipes/, without .yaml")
    weights = commands.add_parser("weights", help="write pretrained weights that need no hub to models/pretrained")
    weights.add_argument("name", metavar="NAME", help="efficientnet-lite0")
    commands.add_parser("sync", help="send MLflow what it missed of the current model while it could not be reached")
    commands.add_parser("promote", help="make the current model the champion of the registered model in MLflow")
    ui = commands.add_parser("ui", help="open MLflow on http://127.0.0.1:5000")
    ui.add_argument("--port", type=_positive, default=5000, help="default 5000")
    verify = commands.add_parser("verify", help="run the committed state twice in two places and compare every byte")
    way = verify.add_mutually_exclusive_group()
    way.add_argument("--record", action="store_true", help="write environment.json if the committed bytes came out")
    way.add_argument(
        "--against", type=Path, metavar="FILE", help="train here and name the first tensor that differs from a trace"
    )
    trace = commands.add_parser("trace", help="train in memory and write a hash of every tensor, to compare machines")
    trace.add_argument("path", type=Path, metavar="FILE", help="the JSON file to write")
    commands.add_parser("audit", help="look the locked packages up in the list of known vulnerabilities")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _fraction(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def cli() -> None:
    """Run the command line as a program."""
    exit_with(main)


if __name__ == "__main__":
    cli()
