"""The same bytes on processors of several generations: all libraries compute with AVX2, whatever else there is."""

import os
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

# Each library chooses its kernels when it is first used. With them a matrix product adds up in one order everywhere.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "MKL_DYNAMIC": "FALSE",  # or MKL may take fewer threads than it is told
}


def set_up(path: Path = Path("params.yaml")) -> None:
    """Where `portable` is set in params.yaml, tell the libraries so; before torch is imported, which reads it then."""
    try:
        params = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError, ValueError):
        return  # the stage itself says what is wrong with it
    if isinstance(params, dict) and params.get("portable") is True:
        os.environ.update(ENVIRONMENT)
