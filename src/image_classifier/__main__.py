"""The command line: `python -m image_classifier predict|doctor|recipe`."""

import argparse

from image_classifier.errors import run


def main() -> int:
    """Parse the command and run it; its modules are imported only then."""
    parser = argparse.ArgumentParser(prog="python -m image_classifier", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    predict = commands.add_parser("predict", help="name what pictures show, with the exported model")
    predict.add_argument("paths", nargs="+", metavar="PATH", help="a picture, or a folder of them")
    predict.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes to show (default 5)")
    predict.add_argument("--json", action="store_true", help="print JSON")
    commands.add_parser("doctor", help="say whether everything is fit to run, and what to do if not")
    recipe = commands.add_parser("recipe", help="write what recipes/NAME.yaml sets into params.yaml")
    recipe.add_argument("name", metavar="NAME")
    options = parser.parse_args()
    if options.command == "predict":
        from image_classifier import predict

        return predict.main(options.paths, options.top_k, options.json)
    if options.command == "recipe":
        from image_classifier import config

        changed = config.apply_recipe(options.name)
        print("\n".join(changed) or f"params.yaml is recipes/{options.name}.yaml already")
        return 0
    from image_classifier import doctor

    return doctor.main()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    run(main)
