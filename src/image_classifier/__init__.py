"""Fine-tune an image classifier and trust the result: the library behind the stages."""

import os

# Set before any of these libraries is imported; a value that the user set wins.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Without this, loading a repository that has only .bin weights asks a hub service to convert them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
