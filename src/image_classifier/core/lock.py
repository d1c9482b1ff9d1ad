"""What a run was made from, by dvc.lock: params.yaml, data and code may have been edited since."""

from collections import ChainMap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from ruamel.yaml import YAML, YAMLError

from image_classifier.core.errors import UserError, first_line

LEADING = ("prepare", "train", "evaluate")  # the stages that lead to the predictions
ALL = (*LEADING, "export", "report")


def stages_of(text: str, name: str) -> dict[str, Any]:
    """The stages in the text of a dvc.lock; `name` stands for it in messages. Raises UserError: it is damaged."""
    try:
        return dict(YAML(typ="safe", pure=True).load(text)["stages"])
    except (YAMLError, TypeError, LookupError) as error:  # such as the marks of a merge
        raise UserError(f"{name} is damaged ({first_line(error)}): remove it and run `dvc repro`") from None


def params_of_run(stages: dict[str, Any], name: str, needed: Sequence[str] = LEADING) -> dict[str, Any]:
    """The params that the `needed` stages were run with, by flat name.

    Raises UserError: a stage was not run, or ran again after one that depends on it.
    """
    used = {stage: stages.get(stage, {}) for stage in needed}
    made = _made(used)
    deps = [dep for stage in used.values() for dep in stage.get("deps", [])]
    if not all(used.values()) or any(made.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in deps):
        raise UserError(f"{name}: a stage was not run, or ran again after one that needs it: run `dvc repro`")
    flat = pd.json_normalize(dict(ChainMap(*(stage["params"]["params.yaml"] for stage in used.values()))))
    return flat.to_dict("records")[0]


def inputs_of_run(stages: dict[str, Any]) -> dict[str, str]:
    """The hash of each input of the predictions that no stage makes, by its path: data, weights and code."""
    used = {stage: stages[stage] for stage in LEADING}
    deps = [dep for stage in used.values() for dep in stage["deps"]]
    return {dep["path"]: dep.get("md5", "") for dep in deps if dep["path"] not in _made(used)}


def _made(used: dict[str, Any]) -> dict[str, str]:
    return {out["path"]: out.get("md5") for stage in used.values() for out in stage.get("outs", [])}
