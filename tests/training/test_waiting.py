"""What a training on a GPU must not do: wait for it. On torch's meta device, to read a value is an error."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from image_classifier.core.config import Augmentation
from image_classifier.model.numerics import Compute
from image_classifier.training import schedule
from image_classifier.training.distributed import Group
from tests.training.test_finetuning import make_trainer

EVERYTHING = {
    "horizontal_flip": True,
    "random_resized_crop": 0.3,
    "crop_padding": 0.1,
    "rotation": 15,
    "color_jitter": 0.4,
    "trivial_augment": True,
    "mixup": 0.2,
    "cutmix": 1.0,
}


class Meta(Compute):
    """A device whose tensors have shapes and no values."""

    def autocast(self):
        return nullcontext()  # torch has none for it


class Copies(TorchDispatchMode):
    """Counts tensors that go from the CPU to the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        given = [value for value in args if isinstance(value, Tensor)]
        if function.name() in ("aten::_to_copy", "aten::copy_") and found.device.type == "meta":
            self.count += any(value.device.type == "cpu" for value in given)
        return found


class Unread(Group):
    """Takes what an epoch measured, which is read when it has ended."""

    def total(self, values: Tensor) -> Tensor:
        return torch.zeros(values.shape)

    def collect(self, part: Tensor, rows: np.ndarray, count: int) -> np.ndarray:
        assert part.device.type == "meta" and len(part) == len(rows) == count
        return np.zeros(count, dtype=np.int64)


# All networks with plain settings; each other setting, which acts on images, gradients or weights, on one of them.
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mobilevit", {}),
        ("vit", {}),
        ("resnet", {}),
        ("vit", {"resolution_schedule": [32]}),
        ("resnet", {"fast_mode": False, "augmentation": Augmentation(**EVERYTHING)}),
        ("resnet", {"gradient_clip": 1.0, "accumulate_batches": 2, "label_smoothing": 0.1, "class_weights": True}),
        ("mobilevit", {"ema_decay": 0.9, "optimizer": "sgd"}),
        ("resnet", {"optimizer": "muon"}),
    ],
    ids=["mobilevit", "vit", "resnet", "smaller", "augmented", "clipped", "averaged", "muon"],
)
def test_an_epoch_reads_nothing_back_until_it_ends(project, monkeypatch, kind, changes):
    for where, name in ((torch.optim, "AdamW"), (torch.optim, "SGD"), (schedule, "Muon")):
        plain = getattr(where, name)  # torch has no fused steps for the meta device
        monkeypatch.setattr(where, name, lambda *given, plain=plain, fused, **named: plain(*given, **named))
    device = torch.device("meta")
    trainer = make_trainer(kind, compute=Meta(device, "fp32", ""), group=Unread(), **changes)
    split = trainer.train
    trainer.feed.resident = torch.cat(split.images).to(device), split.labels.to(device)
    with Copies() as copies:
        *_, rates = trainer._run_steps(0, np.arange(len(split)))  # fails where a value is read
    assert len(rates) == 13 and copies.count <= 2  # the order and the draws, once an epoch
