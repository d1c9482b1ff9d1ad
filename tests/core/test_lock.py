import pytest

from image_classifier.core.errors import UserError
from image_classifier.core.lock import ALL, inputs_of_run, params_of_run, stages_of


def stages(**changes: dict) -> dict:
    """What dvc.lock holds of a whole run."""

    def stage(params: dict, deps: dict, outs: dict) -> dict:
        listed = {
            kind: [{"path": path, "md5": md5} for path, md5 in paths.items()]
            for kind, paths in (("deps", deps), ("outs", outs))
        }
        return {"params": {"params.yaml": params}, **listed}

    made = {
        "prepare": stage({"seed": 0, "data.source": "digits"}, {"src": "s"}, {"data/shards/train": "1"}),
        "train": stage({"seed": 0, "model": {"name": "vit"}}, {"data/shards/train": "1"}, {"models/checkpoint": "2"}),
        "evaluate": stage({"num_threads": None}, {"models/checkpoint": "2"}, {}),
    }
    return made | changes


def test_the_params_of_a_run_are_those_of_all_its_stages():
    expected = {"seed": 0, "data.source": "digits", "model.name": "vit", "num_threads": None}
    assert params_of_run(stages(), "dvc.lock") == expected


@pytest.mark.parametrize("again", ["prepare", "train"])
def test_scores_of_another_model_than_the_params_are_refused(again):
    """A stage ran again, and those after it not yet."""
    found = stages()
    for out in found[again]["outs"]:
        out["md5"] = "3"
    with pytest.raises(UserError, match="dvc.lock of HEAD: a stage was not run, or ran again after one that needs it"):
        params_of_run(found, "dvc.lock of HEAD")


def test_a_stage_that_never_ran_is_one_line():
    found = stages()
    del found["evaluate"]
    with pytest.raises(UserError, match="run `dvc repro`"):
        params_of_run(found, "dvc.lock")


def test_an_export_of_another_model_than_the_scores_is_refused():
    """Evaluate ran again, export and report not yet."""
    export = {"params": {"params.yaml": {}}, "deps": [{"path": "models/checkpoint", "md5": "1"}], "outs": []}
    report = {"params": {"params.yaml": {}}, "deps": [], "outs": []}
    found = stages(export=export, report=report)
    assert params_of_run(found, "dvc.lock")
    with pytest.raises(UserError, match="ran again after one that needs it"):
        params_of_run(found, "dvc.lock", ALL)


def test_the_inputs_of_a_run_are_what_no_stage_makes():
    assert inputs_of_run(stages()) == {"src": "s"}


@pytest.mark.parametrize("text", ["", "stages:\n", "- 1\n", "<<<<<<< HEAD\nstages: {}\n=======\n", "stages: [", "a: 1"])
def test_a_damaged_lock_is_one_line(text):
    with pytest.raises(UserError, match=r"^dvc.lock is damaged \(.+\): remove it and run `dvc repro`$"):
        stages_of(text, "dvc.lock")
