"""Near-duplicates across splits: planted ones are found, and the digits, which have none, give no alarm."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from image_classifier.core.errors import UserError
from image_classifier.images.resize import Resize
from image_classifier.preparation import similar
from stages import prepare
from tests.helpers.project import edit_params, new_project


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """All digits at 160 px, in random order: uint8 [1797, 160, 160, 3]."""
    images = (load_digits().images * (255 / 16)).round().astype("uint8")
    images = images[np.random.default_rng(0).permutation(len(images))]
    return torch.stack([Resize(160, "stretch")(Image.fromarray(image).convert("RGB")) for image in images])


def saved(image: torch.Tensor, quality: int) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))


def halved(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize((80, 80)).resize((160, 160))))


def shifted(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.pad(image.numpy(), ((3, 0), (2, 0), (0, 0)), mode="edge")[:160, :160].copy())


def test_the_digits_have_none(digits):
    found, _, caught = similar.pairs({"test": [digits[:360]], "val": [digits[360:540]], "train": [digits[540:]]})
    assert found == [] and caught >= 0.95


@pytest.mark.parametrize(
    ("copied", "share"),
    [(lambda image: saved(image, 75), 1), (lambda image: saved(image, 30), 1), (halved, 1), (shifted, 0.85)],
)
def test_copies_are_found_with_their_originals(digits, copied, share):
    copies = torch.stack([copied(image) for image in digits[100:200]])
    found, _, _ = similar.pairs({"test": [digits[:100], digits[100:360]], "train": [digits[500:600], copies]})
    assert all(pair.number >= 100 for pair in found), "a digit that is no copy"
    right = [pair for pair in found if pair.other_number == pair.number]
    assert len(right) >= share * 100 and len(right) == len(found)


def test_images_without_content_are_like_none():
    flat = torch.full((5, 64, 64, 3), 200, dtype=torch.uint8)
    found, _, _ = similar.pairs({"test": [flat[:2]], "val": [flat[:1]], "train": [flat]})
    assert found == []


def test_copies_within_the_test_split_do_not_hide_those_across(digits):
    twice = torch.cat([digits[:180], digits[:180]])
    copies = torch.stack([saved(image, 75) for image in digits[100:150]])
    found, _, caught = similar.pairs({"test": [twice], "train": [copies]})
    assert len(found) == 50 and caught > 0.9


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_split_may_have_hardly_any_images(digits, count):
    test = [digits[:count]] if count else []
    found, _, _ = similar.pairs({"test": test, "val": [], "train": [digits[100:110]]})
    assert found == []


def test_the_index_names_both_files(tmp_path, monkeypatch, capsys):
    """A photo that was saved again, in another split, by a name."""
    project = new_project(tmp_path / "project")
    monkeypatch.chdir(project)
    random = np.random.default_rng(0)
    for number in range(40):
        blocks = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype("uint8"))
        split, label = ("test", "train")[number % 3 > 0], ("cat", "dog")[number % 2]
        path = project / f"data/raw/pets/{split}/{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks.resize((90, 60), Image.Resampling.BICUBIC).save(path)
    original = project / "data/raw/pets/test/dog/3.png"
    Image.open(original).resize((60, 40)).save(project / "data/raw/pets/train/dog/again.jpg", quality=80)
    edit_params(project, {"data": {"source": "data/raw/pets", "image_size": 64, "subset_size": None}})
    prepare.main()
    found = [
        line
        for split in ("val", "train")
        for line in json.loads((project / f"data/shards/{split}/index.json").read_text())["findings"]["near_duplicates"]
    ]
    (line,) = found
    assert line.startswith("data/raw/pets/train/dog/again.jpg: like data/raw/pets/test/dog/3.png in test (0.99")
    assert "1 images are near-duplicates of images in other splits" in capsys.readouterr().out


def test_what_is_counted_as_a_duplicate_is_not_told_twice(tmp_path, monkeypatch):
    project = new_project(tmp_path / "project")
    monkeypatch.chdir(project)
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(16):
            path = project / f"data/raw/pets/{split}/{('cat', 'dog')[number % 2]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype("uint8")).save(path)
    twin = project / "data/raw/pets/train/cat/0.png"
    twin.write_bytes((project / "data/raw/pets/test/cat/2.png").read_bytes())
    edit_params(project, {"data": {"source": "data/raw/pets", "image_size": 64, "subset_size": None}})
    with pytest.raises(UserError, match="appear in two splits"):
        prepare.main()
    edit_params(project, {"data": {"on_duplicate": "count"}})
    prepare.main()
    findings = [
        json.loads((project / f"data/shards/{name}/index.json").read_text())["findings"] for name in ("train", "val")
    ]
    assert sum(len(found["duplicates"]) for found in findings) == 1
    assert sum(len(found["near_duplicates"]) for found in findings) == 0
