"""What dvc.lock says of a run, which params.yaml, edited since, may no longer say."""

from collections import ChainMap
from typing import Any

import pandas as pd

from image_classifier.core.errors import UserError

STAGES = ("prepare", "train", "evaluate")  # that lead to the predictions


def params_of_run(stages: dict[str, Any], name: str) -> dict[str, Any]:
    """The params that the predictions were made with, flat, from the `stages` of the dvc.lock that is called `name`.

    Raises UserError: a stage did not run, or one ran again after those that need what it makes.
    """
    used = {stage: stages.get(stage, {}) for stage in STAGES}
    made = {out["path"]: out.get("md5") for stage in used.values() for out in stage.get("outs", [])}
    needed = [dep for stage in used.values() for dep in stage.get("deps", [])]
    if not all(used.values()) or any(made.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in needed):
        raise UserError(f"{name} is of a run that is not finished, and its test scores of another: run `dvc repro`")
    flat = pd.json_normalize(dict(ChainMap(*(stage["params"]["params.yaml"] for stage in used.values()))))
    return flat.to_dict("records")[0]
