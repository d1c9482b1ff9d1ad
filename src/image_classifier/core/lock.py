"""The params of a run from dvc.lock: params.yaml may have been edited since."""

from collections import ChainMap
from typing import Any

import pandas as pd

from image_classifier.core.errors import UserError

STAGES = ("prepare", "train", "evaluate")  # that lead to the predictions


def params_of_run(stages: dict[str, Any], name: str) -> dict[str, Any]:
    """The params that the predictions were made with, by flat name, from the `stages` of a dvc.lock.

    `name` stands for it in messages. Raises UserError: a stage was not run, or ran again after one that depends on it.
    """
    used = {stage: stages.get(stage, {}) for stage in STAGES}
    made = {out["path"]: out.get("md5") for stage in used.values() for out in stage.get("outs", [])}
    needed = [dep for stage in used.values() for dep in stage.get("deps", [])]
    if not all(used.values()) or any(made.get(dep["path"], dep.get("md5")) != dep.get("md5") for dep in needed):
        raise UserError(
            f"{name}: a stage was not run, or ran again after evaluate, so the scores are old: run `dvc repro`"
        )
    flat = pd.json_normalize(dict(ChainMap(*(stage["params"]["params.yaml"] for stage in used.values()))))
    return flat.to_dict("records")[0]
