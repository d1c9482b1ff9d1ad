"""Trainings that are cut short."""

import pytest

from image_classifier.training.trainer import Trainer


def validations(monkeypatch: pytest.MonkeyPatch, dies_in: int) -> list[int]:
    """Interrupt a training in the validation with this number, counted from 1; return the sizes of all validations."""
    validate, sizes = Trainer.validate, []

    def dies(self: Trainer, size: int) -> dict[str, float]:
        sizes.append(size)
        if len(sizes) == dies_in:
            raise KeyboardInterrupt
        return validate(self, size)

    monkeypatch.setattr(Trainer, "validate", dies)
    return sizes
