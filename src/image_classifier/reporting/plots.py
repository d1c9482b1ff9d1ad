"""The curves of a training, as an image file."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def curves(path: Path, epochs: pd.DataFrame) -> None:
    """Draw loss and accuracy of train and val, from one row an epoch with columns such as train_loss.

    Where the image size changes, a line says so.
    """
    sizes = epochs["image_size"].astype(int)
    changes = sizes[sizes != sizes.shift()]
    figure = Figure(figsize=(8, 3), dpi=80, layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "-"), ("val", "--")):
            axis.plot(epochs.index, epochs[f"{split}_{name}"], style, marker=".", color="#6f3fa0", label=split)
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        for epoch, size in changes.items() if len(changes) > 1 else ():
            axis.axvline(epoch - 0.5, color="gray", linewidth=0.8, linestyle=":")
            axis.text(epoch - 0.45, 1.01, f"{size} px", fontsize=7, color="gray", transform=axis.get_xaxis_transform())
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})  # or another matplotlib would give other bytes
