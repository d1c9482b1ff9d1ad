from pathlib import Path

import numpy as np
import pytest
import torch

from image_classifier.core import files
from image_classifier.core.errors import UserError
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader, ShardWriter
from image_classifier.model.batches import batches, shuffled
from image_classifier.training.distributed import Group
from image_classifier.training.feeding import Feed, prefetched

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))


def write(folder: Path) -> Path:
    writer = ShardWriter(folder, Resize(32, "stretch"), shard_size=8)
    for number, image in enumerate(IMAGES):
        writer.add(image, number % 2, bytes([number] * 32), number)
    assert writer.close(["a", "b"]) == 20
    (folder / ".notes.json").unlink()  # as files.resumable does
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "split")


def test_what_is_written_is_read(folder):
    reader = ShardReader(folder)
    assert len(reader) == 20
    assert reader.class_names == ["a", "b"] and reader.resize == Resize(32, "stretch")
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        *(f"shard-0000{n}.safetensors" for n in range(3)),
    ]
    assert files.read_json(folder / "index.json", "")["class_counts"] == {"a": 10, "b": 10}
    order = np.array([19, 0, 8, 7, 3])
    assert torch.equal(reader.gather(order), IMAGES[order])
    assert [reader.hashes[number] for number in order] == [bytes([number] * 32).hex() for number in order]
    assert reader.labels.tolist() == [0, 1] * 10


def test_a_writer_that_is_only_read_holds_no_memory_for_more(tmp_path):
    writer = ShardWriter(tmp_path, Resize(32, "stretch"), shard_size=8)
    writer.add(IMAGES[0], 0, bytes(32), 0)
    (images,), rows = writer.contents()
    assert torch.equal(images, IMAGES[:1]) and rows == [0]
    assert writer.images.untyped_storage().nbytes() == 0
    assert writer.close(["a"]) == 1


def test_equal_inputs_give_equal_bytes(folder, tmp_path):
    again = write(tmp_path / "again")
    for path in folder.iterdir():
        assert files.sha256(path) == files.sha256(again / path.name)


def test_batches_see_every_image_once_and_are_even(folder):
    reader = ShardReader(folder)
    order = shuffled(20, seed=0, epoch=1)
    sizes, seen = [], []
    for images, labels in batches(reader, 19, order):
        sizes.append(len(labels))
        seen.append(images)
    assert sizes == [10, 10]
    assert torch.equal(torch.cat(seen), reader.gather(order))
    assert sorted(order.tolist()) == list(range(20))
    assert order.tolist() != shuffled(20, seed=0, epoch=2).tolist()


def test_a_flipped_byte_is_found_and_named(folder):
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="shard-00001.safetensors is damaged"):
        ShardReader(folder)


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "index.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: run `dvc repro prepare`"):
        ShardReader(folder)


def test_resident_and_prefetched_batches_are_the_readers_own(folder):
    reader = ShardReader(folder)
    order = shuffled(20, 0, 0)
    plain = list(batches(reader, 6, order))
    resident = Feed(reader, torch.device("cpu"))
    resident.resident = torch.cat(reader.images), reader.labels
    for others in (resident.batches(6, order, Group()), prefetched(batches(reader, 6, order))):
        for (images, labels), (same_images, same_labels, *_) in zip(plain, others, strict=True):
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_an_error_while_prefetching_reaches_the_loop():
    def failing():
        yield torch.zeros(1), torch.zeros(1)
        raise OSError("disk")

    batches = prefetched(failing())
    next(batches)
    with pytest.raises(OSError, match="disk"):
        next(batches)
