"""Number formats of training on this CPU: ours in fp32 and the Trainer in bf16, beside the Trainer's default.

python -m benchmarks.precisions
"""

from benchmarks import pairs
from benchmarks.training import ours, trainer

COLUMNS = pairs.columns("images/s", "Trainer")

if __name__ == "__main__":
    ways = {
        "ours in fp32": lambda: ours("fp32").rate(),
        "Trainer in bf16": lambda: trainer(bf16=True).rate(),
        "Trainer": lambda: trainer(bf16=False).rate(),
    }
    packages = ["torch", "transformers", "accelerate"]
    pairs.main("Number formats of training on CPU, 160 px, batch 128", "images/s", ways, packages)
