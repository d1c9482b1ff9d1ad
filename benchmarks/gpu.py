"""Training on a GPU: our loop in bf16 and fp16 against the Trainer in bf16 with 8 workers, 160 px, batch 128.

    python -m benchmarks.gpu

As `benchmarks.training`, with more steps. It was written without a GPU at hand.
"""

import sys

import torch

from benchmarks import pairs
from benchmarks.training import ours, trainer

COLUMNS = pairs.columns("images/s", "Trainer, bf16, 8 workers")
STEPS = 100  # that are counted, after a first one

if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here")
    ways = {
        "ours, bf16": lambda: ours("bf16", "cuda", STEPS).rate(),
        "ours, bf16, compiled": lambda: ours("bf16", "cuda", STEPS, use_compile=True).rate(),
        "ours, fp16": lambda: ours("fp16", "cuda", STEPS).rate(),
        "Trainer, bf16, 8 workers": lambda: trainer(True, "cuda", STEPS, workers=8).rate(),
    }
    pairs.main("Training on a GPU, 160 px, batch 128", "images/s", ways, ["torch", "transformers", "accelerate"])
