import re
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from image_classifier.commands.recipe import apply
from image_classifier.core import config
from image_classifier.core.errors import UserError
from image_classifier.tracking.server import connection
from tests.helpers.project import DEFAULTS, ROOT, edit_params


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(DEFAULTS.read_text())
    return path


def test_params_yaml_holds_every_key_of_the_schema_and_no_other():
    values = YAML(typ="safe").load(ROOT / "params.yaml")
    assert config.load(ROOT / "params.yaml").model_dump().keys() == values.keys()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training": {"learning_rat": 1}}, "training.learning_rat is not a known key; did you mean learning_rate?"),
        ({"trainin": {}}, "trainin is not a known key; did you mean training?"),
        ({"training": {"batch_size": "many"}}, "training.batch_size = 'many': input should be a valid integer"),
        ({"training": {"batch_size": True}}, "training.batch_size = True: input should be a valid integer"),
        ({"training": {"batch_size": 0}}, "training.batch_size = 0: input should be greater than or equal to 1"),
        ({"training": {"learning_rate": -1}}, "training.learning_rate = -1: input should be greater than 0"),
        (
            {"training": {"num_processes": 0}},
            "training.num_processes = 0: input should be auto, or a whole number from 1",
        ),
        (
            {"training": {"learning_rate": float("nan")}},
            "training.learning_rate = nan: input should be a finite number",
        ),
        ({"training": {"optimizer": "lion"}}, "optimizer = 'lion': input should be 'adam', 'adamw', 'muon' or 'sgd'"),
        ({"training": {"fast_mode": "yes"}}, "training.fast_mode = 'yes': input should be a valid boolean"),
        ({"training": {"resolution_schedule": []}}, "training.resolution_schedule = []: list should have at least 1"),
        ({"training": {"resolution_schedule": [64, 192]}}, "192 is larger than data.image_size = 160"),
        ({"data": {"image_size": 20}}, "data.image_size = 20: input should be greater than or equal to 32"),
        ({"data": {"image_size": "big"}}, "data.image_size = 'big': input should be a valid integer"),
        ({"data": {"val_fraction": 1.5}}, "data.val_fraction = 1.5: input should be less than 1"),
        ({"data": None}, "data = None: input should be a valid dictionary"),
        ({"portable": True}, "portable = true needs num_threads"),
        ({"training": {"optimizer": "muon"}, "model": {"freeze_backbone": True}}, "to adamw: set training.optimizer"),
        (
            {"training": {"layer_lr_decay": 0.8}, "model": {"freeze_backbone": True}},
            "layer_lr_decay does nothing where",
        ),
        ({"training": {"batch_norm_images": 1}}, "batch_norm_images = 1: input should be greater than or equal to 2"),
        ({"model": {"unfreeze_blocks": 2}}, "model.unfreeze_blocks needs model.freeze_backbone = true"),
        ({"portable": True, "num_threads": 2}, "portable = true needs training.precision = fp32"),
        (
            {"portable": True, "num_threads": 2, "training": {"precision": "fp32"}},
            "portable = true needs training.device = cpu",
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_key_value_and_what_is_allowed(params, changes, expected):
    edit_params(params.parent, changes)
    with pytest.raises(UserError) as error:
        config.load(params)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_shown(params):
    edit_params(params.parent, {"mlflow": {"tracking_uri": "https://me:secret@mlflow.example.org"}})
    with pytest.raises(UserError, match="tracking_uri holds a password: set MLFLOW_TRACKING_USERNAME") as error:
        config.load(params)
    assert "secret" not in str(error.value)


def test_a_password_in_an_answer_is_not_shown():
    error = ConnectionError("https://me:secret@mlflow.example.org:5000/api does not answer\nmore")
    assert connection.reason(error) == "https://mlflow.example.org:5000/api does not answer"


def test_a_missing_key_is_named(params):
    params.write_text(params.read_text().replace("seed: 0", ""))
    with pytest.raises(UserError, match="seed is missing; every key must be present"):
        config.load(params)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(UserError, match="params.yaml is missing"):
        config.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["seed: 0\nseed: 1\n", "a: [1\n", "- 1\n", "", "\x00"])
def test_odd_yaml_is_refused_in_one_line(params, text):
    params.write_text(text)
    with pytest.raises(UserError) as error:
        config.load(params)
    assert re.fullmatch(r".*params\.yaml( line \d)?( is not valid YAML: .+|: it holds no keys)", str(error.value))


def test_numbers_as_dvc_writes_them_are_numbers(params):
    # `-S training.learning_rate=3e-5` is written as 3e-05, a string to a YAML 1.1 reader.
    text = params.read_text()
    params.write_text(re.sub(r"(learning_rate:) \S+", r"\1 3e-05", text))
    assert params.read_text() != text
    assert config.load(params).training.learning_rate == 3e-5


def test_a_folder_has_no_revision_though_one_is_left_over_from_the_hub(params):
    commit = "0" * 40
    for source, name in (("data/raw/pets", "models/pretrained/vit"), ("someone/digits", "google/vit")):
        changes = {"data": {"source": source, "revision": commit}, "model": {"name": name, "revision": commit}}
        edit_params(params.parent, changes)
        found = config.load(params)
        expected = commit if "someone" in source else None
        assert found.data.revision == found.model.revision == expected


@pytest.mark.parametrize("recipe", [path.stem for path in (ROOT / "recipes").glob("*.yaml")])
def test_a_recipe_is_written_into_params_and_keeps_the_comments(params, recipe):
    changed = apply(recipe, params)
    assert changed
    written, wanted = config.load(params).model_dump(), YAML(typ="safe").load(ROOT / f"recipes/{recipe}.yaml")
    wanted.pop("published", None)  # figures, no params
    written, wanted = (pd.json_normalize(values).to_dict("records")[0] for values in (written, wanted))
    assert {key: written[key] for key in wanted} == wanted
    before, after = DEFAULTS.read_text().splitlines(), params.read_text().splitlines()
    assert [line.split("#")[1:] for line in before] == [line.split("#")[1:] for line in after]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == len(changed)
    assert apply(recipe, params) == []


def test_a_recipe_leaves_nothing_of_another_behind():
    """Each sets the same keys, so that it does not matter which one was written before."""
    recipes = [YAML(typ="safe").load(path) for path in (ROOT / "recipes").glob("*.yaml")]
    keys = [{key for key in pd.json_normalize(recipe).columns if "published" not in key} for recipe in recipes]
    assert all(found == keys[0] for found in keys), [sorted(found ^ keys[0]) for found in keys]


def test_a_bad_recipe_changes_nothing(params, tmp_path):
    before = params.read_text()
    with pytest.raises(UserError, match="choose one of .*cifar10"):
        apply("nothing", params)
    for name, text in (("key", "training:\n  speed: 9\n"), ("value", "training:\n  num_epochs: 0\n")):
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(UserError, match=r"training\.(speed|num_epochs)"):
            apply(name, params, tmp_path)
    assert params.read_text() == before
    assert not list(tmp_path.glob("*unfinished"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml is no recipe"),
        ("training: [1\n", "mine.yaml is no recipe"),
        ("seed: {a: 3}\n", "mine.yaml is no recipe"),
        ("training: {learning_rat: 1}\n", "the recipe sets training.learning_rat, which params.yaml does not have"),
        ("training: {num_epochs: -3}\n", "mine.yaml: training.num_epochs = -3: input should be greater than"),
    ],
)
def test_a_recipe_of_ones_own_that_is_odd_is_one_line_and_changes_nothing(params, text, message):
    (params.parent / "mine.yaml").write_text(text)
    before = params.read_text()
    with pytest.raises(UserError) as error:
        apply("mine", params, params.parent)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert params.read_text() == before
