"""Augmentation of a whole batch against torchvision's of one image, and what it must not depend on."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as one

from image_classifier.core.config import Augmentation
from image_classifier.training import augment as module
from image_classifier.training import colors
from image_classifier.training.augment import MOVING, OPERATIONS, Draws, augment, draw, is_random
from image_classifier.training.distributed import Group
from image_classifier.training.feeding import Feed
from tests.helpers.images import noise

COUNT, SIZE = 48, 32
NONE = dict.fromkeys(("crop_padding", "rotation", "color_jitter", "mixup", "cutmix"), 0)
NONE |= {"horizontal_flip": False, "random_resized_crop": None, "trivial_augment": False}
KINDS = [
    {"horizontal_flip": True},
    {"random_resized_crop": 0.3},
    {"crop_padding": 0.125},
    {"rotation": 15},
    {"color_jitter": 0.4},
    {"trivial_augment": True},
    {"horizontal_flip": True, "random_resized_crop": 0.3, "rotation": 15, "color_jitter": 0.4, "trivial_augment": True},
]


def settings(**changes):
    return Augmentation(**NONE | changes)


def photo():
    """uint8 [SIZE, SIZE, 3] with smooth parts and edges."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    red, green = 200 * x * y + 20, np.where(x + y > 1, 180.0, 60.0)
    return torch.from_numpy(np.stack([red, green, 255 * x], axis=2).astype(np.uint8))


def many(image=None):
    image = torch.from_numpy(np.asarray(noise(SIZE, SIZE)).copy()) if image is None else image
    return image.repeat(COUNT, 1, 1, 1)


def drawn(**values):
    """Draws of one image, 0.5 but for what is given."""
    return torch.tensor([[values.get(name, 0.5) for name in Draws._fields]])


def test_nothing_asked_for_changes_nothing():
    assert not is_random(settings(mixup=0.2, cutmix=1.0))
    images = many()
    assert torch.equal(augment(images, draw(COUNT, 0, 0), settings()), images)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_augmentation_follows_from_the_seed_and_epoch_and_differs_by_image(changes):
    images, chosen = many(), settings(**changes)
    assert is_random(chosen)
    first, again, other, later = (
        augment(images, draw(COUNT, seed, epoch), chosen) for seed, epoch in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    assert first.dtype == torch.uint8 and first.shape == images.shape and first.is_contiguous()
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, later)
    assert len({image.numpy().tobytes() for image in first}) > 1
    assert torch.equal(images, many())  # what was given is as it was


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_augmentation_does_not_depend_on_the_split_into_batches(changes):
    images, draws, chosen = many(), draw(COUNT, 0, 0), settings(**changes)
    whole = augment(images, draws, chosen)
    for size in (1, 7):
        parts = zip(images.split(size), draws.split(size), strict=True)
        assert torch.equal(whole, torch.cat([augment(*part, chosen) for part in parts]))


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_gpu_which_changes_all_and_drops_some_makes_the_same_images(monkeypatch, changes):
    images, draws, chosen = many(photo()), draw(COUNT, 0, 0), settings(**changes)
    on_cpu = augment(images, draws, chosen)
    monkeypatch.setattr(module, "must_wait", lambda device: True)
    assert torch.equal(on_cpu, augment(images, draws, chosen))


class Counted(TorchDispatchMode):
    """Counts the operations that a device would be told to run."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations[function.name()] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_operations_of_a_batch_are_as_many_whatever_its_size_and_read_nothing_back(changes):
    counts = []
    for count in (2, 64):
        with Counted() as counted:  # on "meta", where tensors have no values: to read one is an error
            images = torch.empty((count, SIZE, SIZE, 3), dtype=torch.uint8, device="meta")
            augment(images, torch.empty((count, len(Draws._fields)), device="meta"), settings(**changes))
        counts.append(counted.operations)
    assert counts[0] == counts[1] and counts[0].total() > 5
    assert not {"aten::nonzero", "aten::_local_scalar_dense"} & counts[0].keys()


def test_processes_and_batches_get_the_draws_of_the_place_in_the_order():
    class Split:
        images, labels = [torch.zeros(20, 1, 1, 3, dtype=torch.uint8)], torch.arange(20)

        def gather(self, rows):
            return self.images[0][rows]

    order = np.random.default_rng(0).permutation(20)
    draws = draw(20, 0, 0)
    for resident in (False, True):
        for batch_size, count in ((6, 1), (8, 2)):
            found = {}
            for index in range(count):
                feed = Feed(Split(), torch.device("cpu"))
                feed.resident = (Split.images[0], Split.labels) if resident else None
                for _, labels, rows in feed.batches(batch_size, order, Group(index, count), draws):
                    found |= dict(zip(labels.tolist(), map(tuple, rows.tolist()), strict=True))
            assert found == {image: tuple(draws[place].tolist()) for place, image in enumerate(order.tolist())}


def test_flips_are_flips_of_half_of_the_images():
    images = many()
    flipped = augment(images, draw(COUNT, 0, 0), settings(horizontal_flip=True))
    turned = [torch.equal(new, old.flip(1)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert sum(turned) + sum(kept) == COUNT and COUNT / 4 < sum(turned) < 3 * COUNT / 4


def test_crops_are_those_of_a_mirrored_image():
    image = photo()
    padded = torch.nn.functional.pad(image.permute(2, 0, 1)[None].float(), (4, 4, 4, 4), mode="reflect")[0]
    for top, left in ((0.0, 0.0), (0.999, 0.4), (0.25, 0.999)):
        found = augment(image[None], drawn(shift_y=top, shift_x=left), settings(crop_padding=0.125))[0]
        y, x = int(top * 9), int(left * 9)
        expected = padded[:, y : y + SIZE, x : x + SIZE].permute(1, 2, 0)
        assert torch.equal(found.float(), expected)


def test_resized_crops_are_those_of_torchvision():
    image = photo().permute(2, 0, 1)
    area, ratio, left, top = 0.2, 0.8, 0.3, 0.9
    share = 0.25 + 0.75 * area
    stretch = math.exp(math.log(4 / 3) * (2 * ratio - 1))
    width, height = math.sqrt(share * stretch) * SIZE, math.sqrt(share / stretch) * SIZE
    y, x = top * (SIZE - height), left * (SIZE - width)
    draws = drawn(area=area, ratio=ratio, left=left, top=top)
    found = augment(photo()[None], draws, settings(random_resized_crop=0.25))[0]
    # torchvision crops whole pixels; at eight times the resolution that is an eighth of one.
    large = one.resize(image, [8 * SIZE, 8 * SIZE], antialias=False)
    y, x, height, width = (round(8 * value) for value in (y, x, height, width))
    expected = one.resized_crop(large, y, x, height, width, [SIZE, SIZE], antialias=False).permute(1, 2, 0)
    inner = (slice(2, -2), slice(2, -2))
    assert (found[inner].float() - expected[inner].float()).abs().mean() < 2


@pytest.mark.parametrize("smallest", [0.5, 0.9, 1.0])
def test_no_crop_is_smaller_than_was_asked_for(smallest):
    y, x = np.mgrid[:256, :256]
    ramps = torch.from_numpy(np.stack([x, y, x], axis=2).astype(np.uint8)).repeat(COUNT, 1, 1, 1)
    found = augment(ramps, draw(COUNT, 0, 0), settings(random_resized_crop=smallest)).float()
    width, height = (found[..., channel].amax((1, 2)) - found[..., channel].amin((1, 2)) for channel in (0, 1))
    areas = (width / 255) * (height / 255)
    assert areas.min() > smallest - 0.02
    assert (smallest == 1) == (areas.max() - areas.min() < 0.02)


def trivially(name, image, strength, sign):
    """One image after one operation of TrivialAugment."""
    draws = drawn(operation=(OPERATIONS.index(name) + 0.5) / len(OPERATIONS), strength=strength, sign=sign)
    return augment(image[None].clone(), draws, settings(trivial_augment=True))[0]


@pytest.mark.parametrize("name", MOVING)
def test_moved_images_are_those_of_torchvision(name):
    strength = 0.2
    found = [trivially(name, photo(), strength, sign).float() for sign in (0.9, 0.1)]
    amount = {"rotate": 135, "shear_x": 0.99, "shear_y": 0.99, "translate_x": 0.2 * SIZE, "translate_y": 0.2 * SIZE}
    moved = strength * amount[name]
    values = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": [SIZE / 2, SIZE / 2]}
    image = photo().permute(2, 0, 1).float()
    results = []
    for sign in (1, -1):
        if name == "rotate":
            values["angle"] = sign * moved
        elif name.startswith("shear"):
            values["shear"] = [0.0, 0.0]
            values["shear"]["xy".index(name[-1])] = sign * math.degrees(math.atan(moved))
        else:  # torchvision shifts by whole pixels
            continue
        results.append(one.affine(image, **values, interpolation=one.InterpolationMode.BILINEAR).permute(1, 2, 0))
    if not results:
        shifts = [torch.roll(image, sign, 2 if name[-1] == "x" else 1).permute(1, 2, 0) for sign in (1, -1)]
        weight = moved % 1
        far = [torch.roll(image, 2 * sign, 2 if name[-1] == "x" else 1).permute(1, 2, 0) for sign in (1, -1)]
        results = [(1 - weight) * near + weight * next_ for near, next_ in zip(shifts, far, strict=True)]
    inner = (slice(8, -8), slice(8, -8))  # beyond its edges torchvision's image is black
    # Which sign is which side does not matter, but each is another one.
    close = [[bool((one_[inner] - result[inner]).abs().max() <= 1.5) for result in results] for one_ in found]
    assert close in ([[True, False], [False, True]], [[False, True], [True, False]])


def enhanced(name, image, amount):
    """What torchvision makes of an image for an operation of TrivialAugment."""
    plain = {"brightness": one.adjust_brightness, "saturation": one.adjust_saturation}
    plain |= {"contrast": one.adjust_contrast, "sharpness": one.adjust_sharpness}
    if name in plain:
        return plain[name](image, amount)
    if name == "posterize":
        return one.posterize(image, 8 - round(6 * amount))
    if name == "solarize":
        return one.solarize(image, math.ceil(256 * (1 - amount)))
    return {"autocontrast": one.autocontrast, "equalize": one.equalize}[name](image)


@pytest.mark.parametrize("amount", [0.1, 0.7])
@pytest.mark.parametrize("change", [*colors.BY_FACTOR, *colors.BY_STRENGTH], ids=lambda change: change.__name__)
def test_colors_are_changed_as_by_torchvision(change, amount):
    for image in (photo(), many()[0], torch.full((SIZE, SIZE, 3), 7, dtype=torch.uint8)):
        image = image.permute(2, 0, 1)
        found = change(image[None].float(), torch.tensor([amount]))[0]
        assert (found - enhanced(change.__name__, image, amount).float()).abs().max() < 2  # torchvision truncates twice


@pytest.mark.parametrize("sign", [0.1, 0.9])
@pytest.mark.parametrize("name", [change.__name__ for change in (*colors.BY_FACTOR, *colors.BY_STRENGTH)])
def test_an_operation_of_trivial_augment_has_its_strength_and_sign(name, sign):
    factors = {change.__name__ for change in colors.BY_FACTOR}
    amount = 1 + 0.99 * (0.6 if sign > 0.5 else -0.6) if name in factors else 0.6
    expected = enhanced(name, photo().permute(2, 0, 1), amount).permute(1, 2, 0)
    found = trivially(name, photo(), 0.6, sign)
    assert (found.float() - expected.float()).abs().max() <= 2 and not torch.equal(found, photo())


def test_contrast_does_not_depend_on_the_batch():
    torch.set_num_threads(2)  # a sum over one large image is then split, that over several is not
    images = torch.rand(5, 3, 190, 190, generator=torch.Generator().manual_seed(0)) * 255
    factor = torch.full((5,), 0.3)
    together = colors.contrast(images.clone(), factor)
    alone = [colors.contrast(image[None].clone(), factor[:1]) for image in images]
    assert torch.equal(together, torch.cat(alone))
