"""What sharing a batch costs: two processes on half of the cores each against one on all of them.

    python -m benchmarks.parallel

The same steps of the same training, 160 px, batch 64, in two processes joined by gloo and in one. On one machine's
cores there is nothing to gain: the ratio is the efficiency of the joining, averaging of gradients included.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import pairs
from benchmarks.images import CLASSES, write_made_shards
from image_classifier.training.distributed import Group

COLUMNS = pairs.columns("images/s", "one process")
BATCH_SIZE, SIZE, STEPS = 64, 160, 6  # steps that are counted, after a first one
PROCESSES = 2


def measure(group: Group) -> float:
    """Images per second of all processes together."""
    import torch

    from image_classifier.core import config, runtime
    from image_classifier.images.shards import ShardReader
    from image_classifier.model import numerics
    from image_classifier.model.batches import batches, deal, shuffled
    from image_classifier.model.normalize import Normalize
    from image_classifier.training.build import build_network
    from image_classifier.training.trainer import Trainer

    runtime.configure(None, group.count)
    params = config.load(pairs.ROOT / "params.yaml")
    changes = {"batch_size": BATCH_SIZE, "resolution_schedule": None, "fast_mode": True, "num_epochs": 1}
    training = params.training.model_copy(update=changes)
    with tempfile.TemporaryDirectory() as folder:
        write_made_shards(Path(folder) / "train", BATCH_SIZE * (STEPS + 1), SIZE)
        train = ShardReader(Path(folder) / "train")
        network, normalize = build_network(params.model, CLASSES, SIZE, seed=0), Normalize()
        chosen = numerics.resolve("cpu", "auto")
        trainer = Trainer(network, normalize, chosen, training, 0, train, train, group)
        order = shuffled(len(train), 0, 0)
        assert len(deal(order, BATCH_SIZE)) == STEPS + 1
        network.train()
        ends = []
        for step, (images, labels) in enumerate(batches(train, BATCH_SIZE, order, group.index, group.count)):
            loss, *_ = trainer.stepper.step(images, labels, step, SIZE)
            group.total(torch.zeros(1))  # until all have ended the step
            ends.append(time.perf_counter())
        assert torch.isfinite(loss)
    return BATCH_SIZE * STEPS / (ends[-1] - ends[0])


def alone() -> float:
    """In this process, on all cores."""
    return measure(Group())


def together() -> float:
    """In processes of their own under torchrun, which end before this one says what they took."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    words += ["-m", "benchmarks.parallel", "--worker"]
    output = subprocess.run([sys.executable, *words], cwd=pairs.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def worker() -> None:
    """One of the processes; the first one prints the rate."""
    import torch

    from image_classifier.training import distributed

    with distributed.joined("parallel", torch.device("cpu")) as group:
        rate = measure(group)
        print(json.dumps(rate))


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        worker()
    else:
        ways = {"two processes": together, "one process": alone}
        pairs.main("One batch in two processes, 160 px, batch 64", "images/s", ways, ["torch", "transformers"])
