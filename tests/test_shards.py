import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from test_preprocess import encoded

from image_classifier import files, preprocess, shards
from image_classifier.errors import UserError


def rows(count: int) -> datasets.Dataset:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    images = [{"bytes": encoded(Image.fromarray(p)), "path": None} for p in pictures]
    return datasets.Dataset.from_dict({"image": images, "label": np.arange(count) % 2}, features=features)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 8)
    shards.write(tmp_path / "split", rows(20), ["a", "b"], 32, "split")
    return tmp_path / "split"


def test_what_is_written_is_read(folder):
    reader, source = shards.ShardReader(folder), rows(20)
    assert len(reader) == 20 and reader.class_names == ["a", "b"] and reader.image_size == 32
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        *(f"shard-0000{n}.safetensors" for n in range(3)),
    ]
    order = np.array([19, 0, 8, 7, 3])
    images = reader.gather(order)
    for picture, index in zip(images, order, strict=True):
        decoded = preprocess.decode(source[int(index)]["image"]["bytes"])
        assert torch.equal(picture, preprocess.resize(decoded, 32))
        assert reader.hashes[index] == preprocess.digest(decoded).hex()
    assert reader.labels.tolist() == source["label"]


def test_equal_inputs_give_equal_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.os, "sched_getaffinity", lambda _: {0})  # one thread
    shards.write(tmp_path / "again", rows(20), ["a", "b"], 32, "again")
    for path in folder.iterdir():
        assert files.sha256(path) == files.sha256(tmp_path / "again" / path.name)


def test_batches_see_every_picture_once_and_are_even(folder):
    reader = shards.ShardReader(folder)
    order = shards.shuffled(20, seed=0, epoch=1)
    sizes, seen = [], []
    for images, labels in reader.batches(19, order):
        sizes.append(len(labels))
        seen.append(images)
    assert sizes == [10, 10]
    assert torch.equal(torch.cat(seen), reader.gather(order))
    assert sorted(order.tolist()) == list(range(20))
    assert order.tolist() != shards.shuffled(20, seed=0, epoch=2).tolist()


def test_a_flipped_byte_is_found_and_named(folder):
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard-00001.safetensors is damaged"):
        shards.ShardReader(folder)


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "index.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: run `dvc repro prepare`"):
        shards.ShardReader(folder)
