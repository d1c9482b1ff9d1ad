"""The same checkpoint on processors of several generations: torch computes with AVX2, whatever else there is."""

import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

# Each of torch's libraries chooses its kernels when it is first used, and with them the order in which it adds up.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",  # which MKL promises on Intel's processors alone
    "MKL_DYNAMIC": "FALSE",  # or MKL may take fewer threads than it is told
}


def set_up(path: Path = Path("params.yaml")) -> None:
    """Where `portable` is set in params.yaml, tell the libraries so: before torch is imported, which reads it then."""
    try:
        params = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError, ValueError, RecursionError):
        return  # the stage itself says what is wrong with it
    if isinstance(params, dict) and params.get("portable") is True:
        os.environ.update(ENVIRONMENT)
