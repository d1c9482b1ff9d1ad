"""Where the time of a training went: seconds per phase, as a table with advice."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

READING, COPYING, COMPUTE, OPTIMIZER = "reading", "copy and normalize", "forward and backward", "optimizer"
EVALUATION, TRACKING, SAVING = "evaluation", "tracking", "saving"
# What to do where a phase other than compute takes this share of the time or more.
ADVICE = {
    READING: (0.1, "reading the shards: put data/shards on a faster disk, or give the machine memory to cache them"),
    COPYING: (0.2, "copying and augmenting: set training.fast_mode=true, or switch augmentations off one by one"),
    EVALUATION: (0.3, "evaluation: a smaller data.val_fraction leaves more of the time to training"),
    TRACKING: (0.1, "tracking: is the MLflow server far away? mlflow.tracking_uri=null keeps the run here"),
    SAVING: (0.1, "saving: put .resume and models on a faster disk"),
}
SHORT = 60  # seconds: a training that takes less needs no advice


class Stopwatch:
    """Adds up the seconds of named phases.

    On CUDA the phases inside an epoch are those of the host, which runs ahead of the device; the
    wait for the device at the end of each epoch counts as forward and backward.
    """

    def __init__(self):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.images = 0  # trained on

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def each(self, phase: str, items: Iterable) -> Iterator:
        """Iterate over `items`, timing how long each one is waited for."""
        items = iter(items)
        while True:
            with self(phase):
                if (item := next(items, None)) is None:
                    return
            yield item

    def rate(self) -> float:
        """Images per second of training, evaluation and bookkeeping apart."""
        return self.images / (sum(self.seconds[phase] for phase in (READING, COPYING, COMPUTE, OPTIMIZER)) or 1.0)

    def table(self) -> str:
        """Seconds and shares per phase, the rate, and advice where compute does not dominate."""
        total = sum(self.seconds.values()) or 1.0
        lines = [f"  {phase:<22}{spent:8.1f} s {spent / total:6.1%}" for phase, spent in self.seconds.items()]
        lines.append(f"  {'in all':<22}{total:8.1f} s, {self.rate():.1f} images/s while training")
        costly = [phase for phase, (share, _) in ADVICE.items() if self.seconds[phase] >= share * total]
        if costly and total >= SHORT:
            lines.append(f"  advice: {ADVICE[max(costly, key=self.seconds.__getitem__)][1]}")
        return "\n".join(lines)
