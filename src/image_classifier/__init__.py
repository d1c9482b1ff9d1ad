"""Fine-tune an image classifier and trust the result: the library behind the stages."""

import os

# Set before any of these libraries is imported; a value that the user set wins.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Without this, loading a repository that has only .bin weights asks a hub service to convert them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# The hub's library would tell of every try to reach it; what cannot be had in the end is one line of ours.
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
# What loads in a second needs no bar of its own among the stages' lines.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
