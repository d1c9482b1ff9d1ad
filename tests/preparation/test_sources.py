"""Each kind of source through the real prepare stage's parts, with no network."""

import errno
import io
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import datasets
import dvc.api
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from image_classifier.core import config, files, runtime
from image_classifier.core.errors import UserError
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.preparation import decode, sources
from image_classifier.preparation.columns import class_names
from image_classifier.preparation.write import decode_rows
from stages import prepare
from tests.helpers.images import encoded
from tests.helpers.project import DEFAULTS, command, edit_params

NAMES = ["cat", "dog"]


@pytest.fixture
def workspace(project_folder: Path, monkeypatch) -> Path:
    """An empty working folder with params for two classes of tiny images."""
    monkeypatch.chdir(project_folder)
    return project_folder


@pytest.fixture
def project_folder(tmp_path) -> Path:
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text(DEFAULTS.read_text())
    data = {"source": "data/raw/pets", "image_size": 32, "val_fraction": 0.25}
    edit_params(tmp_path, {"data": data, "training": {"resolution_schedule": None}})
    return tmp_path


def drawn(number: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def pets(count: int, first: int = 0) -> dict[str, list]:
    images = [{"bytes": encoded(drawn(first + number)), "path": None} for number in range(count)]
    return {"img": images, "label": [number % 2 for number in range(count)]}


def parquet(folder: Path, **splits: dict[str, list]) -> None:
    """What a dataset repository on the hub holds: data files, their features in the metadata."""
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    (folder / "plain_text").mkdir(parents=True)
    for split, rows in splits.items():
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"plain_text/{split}-00000-of-00001.parquet")


def class_folders(folder: Path, count: int, first: int = 0, names=NAMES) -> None:
    for number in range(count):
        path = folder / names[number % len(names)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(first + number).save(path)


def prepared(split: str) -> dict:
    return json.loads(Path(f"data/shards/{split}/index.json").read_text())


def refused() -> str:
    with pytest.raises(UserError) as error:
        prepare.main()
    assert not Path("data/shards").exists() or not any(Path("data/shards").iterdir())
    assert not Path("data/.source").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_digits_are_real_and_complete(tmp_path):
    data = config.load(DEFAULTS).data
    digits = sources.load(data, tmp_path)["train"]
    assert len(digits) == 1797
    assert class_names(digits) == list("0123456789")


def test_parquet_as_the_hub_serves_it(workspace):
    parquet(workspace / "data/raw/pets", train=pets(40), test=pets(10, first=100))
    prepare.main()
    assert {split: prepared(split)["count"] for split in ("train", "val", "test")} == {
        "train": 30,
        "val": 10,
        "test": 10,
    }
    assert prepared("train")["class_names"] == NAMES
    assert prepared("test")["class_counts"] == {"cat": 5, "dog": 5}


def test_a_changed_file_is_seen_even_with_its_old_time(workspace):
    folder = workspace / "data/raw/pets"
    parquet(folder, train=pets(40), test=pets(10, first=100))
    prepare.main()
    before = files.sha256("data/shards/train/index.json")
    (old,) = folder.rglob("train-*.parquet")
    time = old.stat()
    command(workspace, "rm", "-r", str(folder))
    parquet(folder, train=pets(40, first=500), test=pets(10, first=100))
    os.utime(old, ns=(time.st_atime_ns, time.st_mtime_ns))
    prepare.main()
    assert files.sha256("data/shards/train/index.json") != before


@pytest.mark.parametrize("layout", ["flat", "split"])
def test_one_folder_per_class(workspace, layout):
    folder = workspace / "data/raw/pets"
    if layout == "flat":
        class_folders(folder, 40)
    else:
        class_folders(folder / "train", 32)
        class_folders(folder / "test", 8, first=100)
    prepare.main()
    counts = {split: prepared(split)["class_counts"] for split in ("train", "val", "test")}
    assert counts == {
        "train": {"cat": 12, "dog": 12},
        "val": {"cat": 4, "dog": 4},
        "test": {"cat": 4, "dog": 4},
    }


def test_classes_called_train_and_test_are_classes(workspace):
    class_folders(workspace / "data/raw/pets", 40, names=["test", "train"])
    prepare.main()
    assert prepared("train")["class_names"] == ["test", "train"]


def test_plain_values_as_labels(workspace):
    rows = pets(40)
    table = {"image": rows["img"], "kind": [NAMES[label] for label in rows["label"]], "weight": rows["label"]}
    features = {"image": datasets.Image(), "kind": datasets.Value("string"), "weight": datasets.Value("int64")}
    (workspace / "data/raw/pets").mkdir()
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet("data/raw/pets/train.parquet")
    assert "2 columns of labels: set data.label_column to one of kind, weight" in refused()
    edit_params(workspace, {"data": {"label_column": "kind"}})
    prepare.main()
    assert prepared("train")["class_counts"] == {"cat": 12, "dog": 12}


def test_columns_can_be_chosen_where_several_would_do(workspace, capsys):
    rows = pets(40)
    table = {"img": rows["img"][::-1], "mask": rows["img"], "coarse": [0, 1, 1, 0] * 10, "fine": rows["label"]}
    labels = {name: datasets.ClassLabel(names=[f"{name} 0", f"{name} 1"]) for name in ("coarse", "fine")}
    features = datasets.Features({"img": datasets.Image(), "mask": datasets.Image(), **labels})
    (workspace / "data/raw/pets").mkdir()
    datasets.Dataset.from_dict(table, features=features).to_parquet("data/raw/pets/train.parquet")
    assert "2 columns of images: set data.image_column to one of img, mask" in refused()
    edit_params(workspace, {"data": {"image_column": "mask"}})
    assert "2 columns of labels: set data.label_column to one of coarse, fine" in refused()
    edit_params(workspace, {"data": {"label_column": "fine"}})
    prepare.main()
    assert "prepare: not used: the columns img, coarse\n" in capsys.readouterr().out
    assert prepared("train")["class_names"] == ["fine 0", "fine 1"]
    digests = {decode.digest(drawn(number)).hex(): number for number in range(40)}
    train = ShardReader("data/shards/train")
    assert [digests[digest] % 2 for digest in train.hashes] == train.labels.tolist()


def test_a_source_without_images_says_so(workspace):
    (workspace / "data/raw/pets").mkdir()
    datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 1]}).to_parquet("data/raw/pets/train.parquet")
    assert "the source has no column of images, only x, label" in refused()


def test_tables_that_number_the_classes_otherwise_are_refused(workspace):
    """`datasets` gives the names of the first table to all: test images would get wrong labels without a word."""
    folder = workspace / "data/raw/pets"
    parquet(folder, train=pets(40), test=pets(10, first=100))
    (test,) = folder.rglob("test-*.parquet")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[::-1])})
    datasets.Dataset.from_dict(pets(10, first=100), features=features).to_parquet(test)
    assert "test-00000-of-00001.parquet has other class numbers" in refused()


def test_a_readme_cannot_bring_tables_from_elsewhere(workspace):
    parquet(workspace / "data/raw/pets", train=pets(40))
    parquet(workspace / "other", train=pets(40))
    path = "../../../other/plain_text/train-00000-of-00001.parquet"
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {path}\n---\n"
    (workspace / "data/raw/pets/README.md").write_text(card)
    message = refused()
    assert "data.source = data/raw/pets refers to " in message and "outside of it: put its files inside" in message


def test_all_unreadable_files_are_named_also_beyond_a_subset(workspace):
    folder = workspace / "data/raw/pets"
    class_folders(folder, 120)
    edit_params(workspace, {"data": {"subset_size": 10}})
    for path in sorted(folder.rglob("*.png"))[::7]:
        path.write_bytes(b"")
    message = refused()
    broken = len(sorted(folder.rglob("*.png"))[::7])
    assert message.startswith(f"{broken} images cannot be read")


def test_unreadable_files_are_all_named_or_left_out(workspace):
    folder = workspace / "data/raw/pets"
    class_folders(folder, 40)
    (folder / "cat/notes.txt").write_text("no image")
    (folder / "dog/broken.png").write_bytes(encoded(drawn(0))[:60])
    message = refused()
    assert message.startswith("2 images cannot be read (data.on_unreadable = fail; remove them, or skip): ")
    assert "data/raw/pets/cat/notes.txt: not an image" in message and "data/raw/pets/dog/broken.png: " in message
    edit_params(workspace, {"data": {"on_unreadable": "skip"}})
    prepare.main()
    left_out = [line for split in ("train", "val", "test") for line in prepared(split)["findings"]["unreadable"]]
    assert sorted(line.split(":")[0] for line in left_out) == [
        "data/raw/pets/cat/notes.txt",
        "data/raw/pets/dog/broken.png",
    ]
    assert sum(prepared(split)["count"] for split in ("train", "val", "test")) == 40


def test_duplicates_across_splits_are_found_by_their_pixels(workspace):
    folder = workspace / "data/raw/pets"
    class_folders(folder / "train", 32)
    class_folders(folder / "test", 8, first=100)
    drawn(1).save(folder / "test/dog/copy.tiff")  # the same pixels in another format
    (folder / "test/cat/odd.png").write_bytes(encoded(drawn(999)))
    assert "1 images appear in two splits (data.on_duplicate = fail; drop or count): data/raw/pets/train/" in refused()
    edit_params(workspace, {"data": {"on_duplicate": "drop"}})
    prepare.main()
    assert prepared("train")["count"] + prepared("val")["count"] == 31
    assert prepared("test")["count"] == 10


def test_a_subset_stays_whole_and_balanced_when_images_are_left_out(workspace):
    folder = workspace / "data/raw/pets"
    class_folders(folder / "train", 80)
    class_folders(folder / "test", 8, first=200)
    for number, path in enumerate(sorted((folder / "train/cat").iterdir())[:12]):
        shutil.copy(path, folder / f"test/cat/copy{number}.png")
    edit_params(workspace, {"data": {"on_duplicate": "drop", "subset_size": 40}})
    prepare.main()
    assert prepared("train")["class_counts"] == {"cat": 20, "dog": 20}
    found = ShardReader("data/shards/train").hashes
    assert len(set(found)) == 40 and not set(found) & set(ShardReader("data/shards/test").hashes)
    for made in (folder / "train/dog", Path("data/shards")):
        shutil.rmtree(made)
    class_folders(folder / "train", 80)
    for path in sorted((folder / "train/dog").iterdir())[:30]:
        path.write_bytes(b"no image")
    edit_params(workspace, {"data": {"on_unreadable": "skip"}})
    message = refused()
    assert "data.subset_size = 40, but " in message
    least = int(message.split("choose ")[1].split()[0])
    edit_params(workspace, {"data": {"subset_size": least}})
    prepare.main()
    assert prepared("train")["class_counts"] == {"cat": least // 2, "dog": least // 2}


def test_rows_without_a_image_are_unreadable(workspace):
    rows = pets(40)
    rows["img"][3], rows["img"][5] = None, {"bytes": b"", "path": None}
    parquet(workspace / "data/raw/pets", train=rows, test=pets(10, first=100))
    message = refused()
    assert message.startswith("2 images cannot be read")
    assert "row 3 of train: not an image" in message and "row 5 of train: not an image" in message


def test_a_table_cannot_name_files_outside_of_the_images(workspace):
    drawn(1).save(workspace / "secret.png")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for number, path in enumerate([str(workspace / "secret.png"), "data/raw/../../secret.png"]):
        rows = pets(40)
        rows["img"][7] = {"bytes": None, "path": path}
        # Not with `datasets`, which would read the file into the table.
        table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema)
        folder = workspace / f"data/raw/pets{number}"
        folder.mkdir()
        pyarrow.parquet.write_table(table, folder / "train.parquet")
        edit_params(workspace, {"data": {"source": str(folder.relative_to(workspace))}})
        message = refused()
        assert "row 7 of train: " in message and "secret.png lies outside data/raw/" in message


def test_a_class_that_duplicates_would_empty_is_refused(workspace):
    class_folders(workspace / "data/raw/pets/train", 16)
    class_folders(workspace / "data/raw/pets/test", 16)
    edit_params(workspace, {"data": {"on_duplicate": "drop"}})
    assert "no image of the class cat, dog is left in val" in refused()


def test_the_bytes_do_not_depend_on_the_number_of_cpus(workspace, monkeypatch):
    class_folders(workspace / "data/raw/pets", 40)
    made = []
    for cpus in (1, 3):
        monkeypatch.setattr(runtime, "cpus", lambda cpus=cpus: cpus)
        prepare.main()
        made.append({path: files.sha256(path) for path in Path("data/shards").rglob("*") if path.is_file()})
    assert made[0] == made[1]


def test_a_hub_dataset_needs_a_commit(workspace):
    edit_params(workspace, {"data": {"source": "uoft-cs/cifar10", "revision": "main"}})
    assert "data.source = uoft-cs/cifar10 needs data.revision, the commit of the dataset" in refused()


def test_without_the_hub_one_line_says_how_to_fetch(workspace):
    commit = "0b2714987fa478483af9968de7c934580d0bb9a2"
    edit_params(workspace, {"data": {"source": "uoft-cs/cifar10", "revision": commit}})
    message = refused()
    assert f"data.source = uoft-cs/cifar10 at {commit} cannot be loaded" in message
    assert f"`hf download --repo-type dataset uoft-cs/cifar10 --revision {commit} --local-dir data/raw/NAME`" in message


def offline_cache(folder: Path, commit: str) -> None:
    """What `load_dataset("acme/pets", revision=commit)` leaves in the cache of `datasets`."""
    parquet(folder / "pets", train=pets(40), test=pets(10, first=100))
    datasets.load_dataset(str(folder / "pets"), cache_dir=str(folder))
    (made,) = (folder / "pets").glob("default*/0.0.0/*/dataset_info.json")
    cached = folder / f"acme___pets/default/0.0.0/{commit}"
    shutil.copytree(made.parent, cached)
    info = json.loads(made.read_text())
    (cached / "dataset_info.json").write_text(json.dumps(info | {"config_name": "default", "dataset_name": "pets"}))


def test_the_offline_cache_is_honoured_for_the_pinned_commit_alone(workspace, tmp_path, monkeypatch):
    offline_cache(tmp_path / "cache", "a" * 40)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    edit_params(workspace, {"data": {"source": "acme/pets", "revision": "b" * 40}})
    # `datasets` itself serves whatever it has cached last, of any commit.
    assert f"without the hub, the cache gave {'a' * 40}" in refused()
    edit_params(workspace, {"data": {"revision": "a" * 40}})
    prepare.main()
    assert prepared("train")["count"] == 30 and prepared("test")["count"] == 10
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 2**30)  # HF_DATASETS_IN_MEMORY_MAX_SIZE
    prepare.main()
    # Another commit is newer in the cache, and is what `datasets` itself would serve.
    whole = files.sha256("data/shards/train/index.json")
    offline_cache(tmp_path / "newer", "c" * 40)
    newer = tmp_path / "cache/acme___pets/default/0.0.0" / ("c" * 40)
    shutil.copytree(tmp_path / "newer/acme___pets/default/0.0.0" / ("c" * 40), newer)
    os.utime(newer)
    prepare.main()
    assert files.sha256("data/shards/train/index.json") == whole


def test_a_temp_run_is_told_to_use_dvc_add(workspace, tmp_path, monkeypatch):
    class_folders(tmp_path / "real/data/raw/pets", 4)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "real"))
    assert "put it under DVC first: `dvc add data/raw/pets`" in refused()


def rows_with_label(label: int | None) -> dict[str, list]:
    rows = pets(40)
    rows["label"][7] = label
    return rows


def empty(folder: Path) -> None:
    folder.mkdir()


def stray(folder: Path) -> None:
    class_folders(folder, 40)
    (folder / "readme.txt").write_text("hello")


def beside_splits(folder: Path) -> None:
    class_folders(folder / "train", 40)
    class_folders(folder / "extra", 2)


def nested(folder: Path) -> None:
    class_folders(folder, 40)
    (folder / "cat/more").mkdir()


def lonely(folder: Path) -> None:
    class_folders(folder, 40)
    (folder / "fish").mkdir()
    drawn(50).save(folder / "fish/one.png")


def other_classes(folder: Path) -> None:
    class_folders(folder / "train", 40)
    class_folders(folder / "test", 8, first=100, names=["cat", "wolf"])


def empty_class(folder: Path) -> None:
    class_folders(folder, 40)
    (folder / "fish").mkdir()


@pytest.mark.parametrize(
    ("make", "data", "expected"),
    [
        (lambda folder: None, {}, "data.source: data/raw/pets does not exist"),
        (empty, {}, "data.source = data/raw/pets is empty"),
        (stray, {}, "data/raw/pets/readme.txt is a file among the folders of the classes"),
        (beside_splits, {}, "data/raw/pets holds the splits train and also extra"),
        (nested, {}, "data/raw/pets/cat/more is a folder inside a class"),
        (lonely, {}, "cannot share out the class 'fish': it has 1 image"),
        (other_classes, {}, "train holds no image of the class wolf"),
        (empty_class, {}, "holds no image of the class fish"),
        (lambda folder: class_folders(folder, 9, names=["cat"]), {}, "has one class, cat"),
        (lambda folder: parquet(folder, train=rows_with_label(-1)), {}, "row 7 of train has label -1, outside the 2"),
        (lambda folder: parquet(folder, train=rows_with_label(None)), {}, "rows of train have no label"),
        (
            lambda folder: parquet(folder, train=pets(40)),
            {"image_column": "label"},
            "image_column = label is a column of type",
        ),
        (lambda folder: parquet(folder, train=pets(40)), {"label_column": "img"}, "label_column = img is a column"),
        (lambda folder: parquet(folder, test=pets(40)), {}, "has no train split, only test"),
        (lambda folder: parquet(folder, train=pets(40)), {"test_fraction": None}, "has no test split: set data.test"),
        (
            lambda folder: parquet(folder, train=pets(40)),
            {"subset_size": 99},
            "data.subset_size = 99, but the training",
        ),
        (lambda folder: parquet(folder, train=pets(40)), {"image_column": "x"}, "x is not a column of the source"),
        (lambda folder: parquet(folder, train=pets(40)), {"val_from": "validation"}, "has no validation split"),
        (lambda folder: None, {"source": "data/raw/../pets"}, "leaves data/raw/"),
    ],
)
def test_bad_sources_are_refused_in_one_line_and_nothing_is_written(workspace, make, data, expected):
    make(workspace / "data/raw/pets")
    edit_params(workspace, {"data": data})
    assert expected in refused()


def test_a_damaged_parquet_file_is_refused(workspace):
    parquet(workspace / "data/raw/pets", train=pets(40))
    (path,) = (workspace / "data/raw/pets").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert "data.source = data/raw/pets cannot be loaded: " in refused()


@pytest.mark.parametrize("place", ["data/raw", "models/pretrained"])
def test_what_is_put_under_dvc_is_seen_by_dvc(project, place):
    class_folders(project / place / "pets", 4)
    command(project, "dvc", "add", f"{place}/pets")
    assert f"{place}/pets.dvc" in command(project, "dvc", "stage", "list", "--all").stdout
    untracked = command(project, "git", "ls-files", "--others", "--exclude-standard").stdout.split()
    assert untracked == []  # autostage has added the .dvc file; the images are ignored
    assert command(project, "git", "ls-files", place).stdout.split() == [f"{place}/.gitkeep", f"{place}/pets.dvc"]


@pytest.mark.full
def test_own_images_under_dvc_reach_an_experiment_in_its_own_folder(project):
    class_folders(project / "data/raw/pets", 120)
    missing = command(project, "dvc", "exp", "run", "--temp", "-S", "data.source=data/raw/pets", ok=False)
    assert "put it under DVC first: `dvc add data/raw/pets`" in missing.stdout + missing.stderr
    command(project, "dvc", "add", "data/raw/pets")
    command(project, "git", "add", "-A")
    command(project, "git", "commit", "-qm", "pets")
    changes = ("-S", "data.source=data/raw/pets", "-S", "data.subset_size=null", "-S", "training.num_epochs=1")
    command(project, "dvc", "exp", "run", "--temp", "-n", "pets", *changes)
    shown = json.loads(command(project, "dvc", "metrics", "diff", "HEAD", "pets", "--json").stdout)
    assert "accuracy" in shown["metrics/evaluate/metrics.json"]
    predictions = dvc.api.read("metrics/evaluate/per_class.csv", repo=str(project), rev="pets")
    assert [line.split(",")[0] for line in predictions.splitlines()] == ["class", *NAMES]


@pytest.mark.parametrize("mode", ["stretch", "crop"])
def test_images_resized_together_are_those_resized_alone_in_order(mode):
    resize = Resize(32, mode)
    sizes = [(9, 7), (300, 200), (9, 7), (40, 50), (300, 200), (9, 7)]
    originals = [drawn(number, size) for number, size in enumerate(sizes)]
    images = [{"bytes": encoded(image), "path": None} for image in originals]
    images.insert(2, {"bytes": b"no image", "path": None})
    made = decode_rows(resize, [(image, 0, f"row {number}") for number, image in enumerate(images)])
    assert [found.where for found in made] == [f"row {number}" for number in range(7)]
    bad = made.pop(2)
    assert bad.pixels is None and bad.error.startswith("not an image in one of the formats PNG, JPEG, ")
    for found, alone in zip(made, originals, strict=True):
        assert torch.equal(found.pixels, resize(alone)) and found.digest == decode.digest(alone)


# ---------------------------------------------------------------- folders as people keep them


def counts() -> dict[str, int]:
    return {split: prepared(split)["count"] for split in ("train", "val", "test")}


@pytest.mark.parametrize("linked", ["data/raw/pets", "data/raw/pets/cat", "data/raw/pets/train/cat"])
def test_a_linked_folder_is_refused(workspace, tmp_path, linked):
    class_folders(tmp_path / "elsewhere", 40)
    if linked.endswith("pets"):
        Path(linked).symlink_to(tmp_path / "elsewhere")
    else:
        class_folders(Path(linked).parent, 40, names=["dog", "fox"])
        Path(linked).symlink_to(tmp_path / "elsewhere/cat")
    assert refused().startswith(f"{linked} is a link to a folder, behind which DVC sees no change")


def test_names_with_accents_blanks_and_brackets_are_right(workspace):
    folder = "data/raw/chats (\u00e9t\u00e9) & chiens"
    class_folders(workspace / folder, 40, names=["chat \u00e2g\u00e9", "chien (petit)"])
    edit_params(workspace, {"data": {"source": folder}})
    prepare.main()
    assert prepared("train")["class_names"] == ["chat \u00e2g\u00e9", "chien (petit)"]


def test_links_to_files_are_followed(workspace, tmp_path):
    class_folders(tmp_path / "elsewhere", 40)
    for path in (tmp_path / "elsewhere").rglob("*.png"):
        link = Path("data/raw/pets", path.parent.name, path.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    prepare.main()
    assert counts() == {"train": 24, "val": 8, "test": 8}


def test_a_name_that_is_not_utf_8_is_named(workspace):
    class_folders(workspace / "data/raw/pets", 40)
    os.rename("data/raw/pets/cat/000.png", b"data/raw/pets/cat/caf\xe9.png")
    assert refused().startswith(r"data/raw/pets/cat/caf\xe9.png: its name is not UTF-8, which DVC needs")


def test_what_operating_systems_leave_is_left_out_and_told(workspace, capsys):
    folder = workspace / "data/raw/pets"
    class_folders(folder, 40)
    for name in ("Thumbs.db", "cat/Thumbs.db", "dog/desktop.ini", "dog/._001.png", "cat/.DS_Store"):
        (folder / name).write_bytes(b"\xd0\xcf\x11\xe0")
    class_folders(folder, 4, names=[".net", "__MACOSX"])  # a class that begins with a dot is hidden too
    prepare.main()
    assert counts() == {"train": 24, "val": 8, "test": 8}
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "left out 8 hidden or system files" in told
    assert all(
        part in told for part in ("Thumbs.db (2)", ".net (2)", "__MACOSX (2)", "desktop.ini (1)", "._001.png (1)")
    )


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Valid"), ("training", "dev"), ("TRAIN", "validation")])
def test_splits_are_taken_under_the_names_that_people_use(workspace, capsys, names):
    class_folders(workspace / "data/raw/pets" / names[0], 40)
    class_folders(workspace / "data/raw/pets" / names[1], 10, first=100)
    prepare.main()
    assert "prepare: not used: validation (10 images; data.val_from = train)" in capsys.readouterr().out
    edit_params(workspace, {"data": {"val_from": "validation"}})
    prepare.main()
    assert counts() == {"train": 32, "val": 10, "test": 8}
    assert "not used" not in capsys.readouterr().out


def two_validations(folder: Path) -> None:
    for number, name in enumerate(("train", "val", "valid")):
        class_folders(folder / name, 40, first=100 * number)


def kaggle(folder: Path) -> None:
    class_folders(folder / "train", 40)
    (folder / "test").mkdir()
    drawn(500).save(folder / "test/0001.png")


def labels_in_a_table(folder: Path) -> None:
    class_folders(folder, 40)
    (folder / "labels.csv").write_text("file_name,label\n")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (two_validations, "data/raw/pets/val and data/raw/pets/valid are both validation"),
        (
            kaggle,
            "holds the splits train and also test, which has no class folders: without labels it is of no use",
        ),
        (labels_in_a_table, "a table of labels is read if it is called metadata.csv and has a column file_name"),
        (beside_splits, "holds the splits train and also extra: rename it to one of train, validation, test"),
    ],
)
def test_a_layout_that_cannot_be_taken_says_what_to_do(workspace, make, expected):
    make(workspace / "data/raw/pets")
    assert expected in refused()


def test_classes_that_may_be_one_are_told(workspace, capsys):
    names = ["cat", "Cat ", "caf\u00e9", "cafe\u0301", "dog"]
    class_folders(workspace / "data/raw/pets", 100, names=names)
    prepare.main()
    told = capsys.readouterr().out
    assert "differ only in case, blanks or Unicode form: 'Cat ' and 'cat'; 'cafe\u0301' and 'caf\u00e9'. Are" in told


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_images_beside_a_table_of_labels(workspace, kind):
    folder = workspace / "data/raw/pets"
    (folder / "images").mkdir(parents=True)
    rows = [{"file_name": f"images/{number}.png", "label": NAMES[number % 2]} for number in range(40)]
    for number, row in enumerate(rows):
        drawn(number).save(folder / row["file_name"])
    lines = ["file_name,label", *(",".join(row.values()) for row in rows)] if kind == "csv" else map(json.dumps, rows)
    (folder / f"metadata.{kind}").write_text("\n".join(lines))
    prepare.main()
    assert prepared("train")["class_counts"] == {"cat": 12, "dog": 12}
    digests = {decode.digest(drawn(number)).hex(): number for number in range(40)}
    train = ShardReader("data/shards/train")
    assert [digests[digest] % 2 for digest in train.hashes] == train.labels.tolist()


def listed(
    folder: Path, table: str, names: list[str], labels: list[str], first: int = 0, columns: str = "label"
) -> None:
    """Images, and a table that lists them by name and label; or by `columns`, where the labels are cells of several."""
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(first + number).save(folder / name)
    below = [os.path.relpath(folder / name, (folder / table).parent) for name in names]
    lines = [f"{name},{label}" for name, label in zip(below, labels, strict=True)]
    (folder / table).write_text("\n".join([f"file_name,{columns}", *lines]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_that_names_splits_decides_them(workspace, kind, capsys):
    names = ["Train"] * 60 + ["val"] * 20 + ["test"] * 20
    folder = workspace / "data/raw/pets"
    if kind == "csv":
        labels = [f"{NAMES[number % 2]},{names[number]}" for number in range(100)]
        listed(folder, "metadata.csv", [f"{number}.png" for number in range(100)], labels, columns="label,part")
    else:
        folder.mkdir()
        features = {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "part": datasets.Value("string"),
        }
        rows = datasets.Dataset.from_dict({**pets(100), "part": names}, features=datasets.Features(features))
        rows.shuffle(seed=0).to_parquet(folder / "all.parquet")
    edit_params(workspace, {"data": {"val_from": "validation"}})
    prepare.main()
    assert "the column part names the split of each image: train 60, validation 20, test 20" in capsys.readouterr().out
    number = {decode.digest(drawn(number)).hex(): number for number in range(100)}
    for split, expected in (("train", range(60)), ("val", range(60, 80)), ("test", range(80, 100))):
        reader = ShardReader(f"data/shards/{split}")
        assert sorted(number[digest] for digest in reader.hashes) == list(expected)
        assert [number[digest] % 2 for digest in reader.hashes] == reader.labels.tolist()


def test_two_columns_that_name_splits_are_one_line(workspace):
    folder = workspace / "data/raw/pets"
    cells = ["cat,train,test", "dog,test,train"] * 20
    listed(folder, "metadata.csv", [f"{number}.png" for number in range(40)], cells, columns="label,fold,part")
    assert "the columns fold, part all name splits: keep one" in refused()


def test_several_tables_of_labels_are_read_in_the_order_of_their_paths(workspace, tmp_path):
    """`datasets` collects them in a set, whose order changes from run to run."""
    folder = workspace / "data/raw/pets"
    for number, name in enumerate("dacb"):
        listed(
            folder, f"{name}/metadata.csv", [f"{name}/{i}.png" for i in range(3)], ["cat", "dog", "cat"], 10 * number
        )
    rows = sources.load(config.load().data, tmp_path)["train"]
    paths = [Path(image["path"]).relative_to(folder.relative_to(workspace)) for image in rows["image"]]
    assert [str(path) for path in paths] == [f"{name}/{i}.png" for name in "abcd" for i in range(3)]


def test_tables_of_which_one_holds_numbers_alone_are_one_column(workspace):
    folder = workspace / "data/raw/pets"
    listed(folder, "a/metadata.csv", [f"a/{number}.png" for number in range(20)], ["1", "2"] * 10)
    listed(folder, "b/metadata.csv", [f"b/{number}.png" for number in range(20)], ["2", "x"] * 10, 100)
    prepare.main()
    assert prepared("train")["class_names"] == ["1", "2", "x"]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1.1", "1.10", "1.2"], ["1.1", "1.10", "1.2"]),
        (["01", "1", "02"], ["01", "02", "1"]),
        (["None", "NA", "null"], ["NA", "None", "null"]),
        (["10", "9", "2"], ["2", "9", "10"]),
    ],
)
def test_labels_of_a_csv_are_the_text_that_it_holds(workspace, labels, names):
    listed(workspace / "data/raw/pets", "metadata.csv", [f"{i}.png" for i in range(60)], labels * 20)
    prepare.main()
    assert prepared("train")["class_names"] == names


def test_a_comma_at_the_end_of_each_row_shifts_nothing_unseen(workspace):
    folder = workspace / "data/raw/pets"
    listed(folder, "metadata.csv", [f"{number}.png" for number in range(40)], [f"{name}," for name in NAMES] * 20)
    assert "rows with more cells than its header, as a trailing comma makes" in refused()


def test_parts_whose_names_end_in_a_hash_are_whole(workspace):
    folder = workspace / "data/raw/pets"
    for number in range(2):
        parquet(folder / str(number), train=pets(20, 20 * number))
        (made,) = (folder / str(number)).rglob("*.parquet")
        made.rename(folder / f"train-0000{number}-of-00002-{number:016x}.parquet")
        shutil.rmtree(folder / str(number))
    prepare.main()
    assert sum(prepared(split)["count"] for split in ("train", "val", "test")) == 40


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            '{"file_name": "1.png", "label": "cat", "id": 99999999999999999999}',
            "columns of its tables do not match",
        ),
        ("[1, 2]", "metadata.jsonl cannot be read: "),
        ("7", "metadata.jsonl cannot be read: "),
    ],
)
def test_odd_rows_of_jsonl_are_one_line(workspace, row, expected):
    folder = workspace / "data/raw/pets"
    folder.mkdir()
    first = json.dumps({"file_name": "0.png", "label": "dog", "note": "a\u2028line"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(f"{first}\n{row}\n")
    assert expected in refused()


def test_a_row_of_jsonl_without_a_label_is_counted(workspace):
    folder = workspace / "data/raw/pets"
    listed(folder, "metadata.csv", [f"{number}.png" for number in range(40)], NAMES * 20)
    (folder / "metadata.csv").unlink()
    rows = [{"file_name": f"{number}.png", "label": NAMES[number % 2]} for number in range(40)]
    del rows[7]["label"]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "1 of 40 rows of train have no label (1 null)" in refused()


def test_a_table_may_stand_above_the_splits_and_leave_images_out(workspace, capsys):
    folder = workspace / "data/raw/pets"
    names = [*(f"train/test_{i}.png" for i in range(40)), *(f"test/{i}.png" for i in range(10))]
    listed(folder, "metadata.csv", names, NAMES * 25)
    drawn(900).save(folder / "train/other.png")
    prepare.main()
    assert [prepared(split)["count"] for split in ("train", "val", "test")] == [30, 10, 10]
    assert "not used: 1 images that no table lists, such as data/raw/pets/train/other.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda text: text.replace("train/39.png", "holdout/39.png"),
            "in folders named after splits, and also holdout/39.png: move",
        ),
        (lambda text: text.replace("file_name", "file"), "metadata.csv has no column file_name, only file, label"),
        (lambda text: text.replace("file_name,label", "file_name,image"), "has a column named image beside file_name"),
        (lambda text: text.replace("label", '"label'), "metadata.csv cannot be read: "),
        (lambda text: text.split("\n")[0], "data.source = data/raw/pets: its tables list no images"),
    ],
)
def test_a_table_of_labels_that_cannot_be_taken_says_what_to_do(workspace, change, expected):
    folder = workspace / "data/raw/pets"
    listed(folder, "metadata.csv", [f"train/{i}.png" for i in range(40)], NAMES * 20)
    (folder / "metadata.csv").write_text(change((folder / "metadata.csv").read_text()))
    assert expected in refused()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("extra.parquet", "extra.parquet would be ignored, as only other files are named after a split"),
        ("more/x.parquet", "more/x.parquet would be ignored"),
        ("plain_text/train-00001-of-00003.parquet", "is one of 3 files, and 1 were found: download the rest"),
    ],
)
def test_a_table_that_would_not_be_read_is_refused(workspace, name, expected):
    folder = workspace / "data/raw/pets"
    parquet(folder, train=pets(40))
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / "plain_text/train-00000-of-00001.parquet", folder / name)
    assert expected in refused()


def test_a_table_among_the_folders_of_the_classes_is_refused(workspace):
    """`datasets` would read the images alone, past every check of such folders."""
    class_folders(workspace / "data/raw/pets", 40)
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), "data/raw/pets/embeddings.parquet")
    assert "holds parquet files and also 000.png: keep one kind" in refused()


def test_a_readme_that_begins_with_text_between_lines_is_one_line(workspace):
    parquet(workspace / "data/raw/pets", train=pets(40))
    (workspace / "data/raw/pets/README.md").write_text("---\nPets of 2024\n---\n")
    assert "README.md starts with a block between --- lines" in refused()


def test_a_name_that_is_a_pattern_to_datasets_is_refused(workspace):
    parquet(workspace / "data/raw/pets [v2]", train=pets(40))
    edit_params(workspace, {"data": {"source": "data/raw/pets [v2]"}})
    assert "which `datasets` reads as a pattern: rename the folder" in refused()


def test_labels_in_half_precision_are_classes_too(workspace):
    labels = np.arange(40, dtype=np.float16) % 2
    table = {"image": [encoded(drawn(number)) for number in range(40)], "label": labels}
    (workspace / "data/raw/pets").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), "data/raw/pets/train.parquet")
    prepare.main()
    assert prepared("train")["class_names"] == ["0", "1"]


def test_a_class_with_a_carriage_return_is_refused(workspace):
    table = {"image": [encoded(drawn(number)) for number in range(40)], "label": ["cat\r", "dog"] * 20}
    (workspace / "data/raw/pets").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), "data/raw/pets/train.parquet")
    assert "the class cat\\r contains a carriage return" in refused()


@pytest.mark.parametrize("shape", ["bytes", "struct", "struct without a path"])
@pytest.mark.parametrize("labels", ["text", "integers"])
def test_tables_as_pandas_and_spark_write_them(workspace, shape, labels):
    files_ = [encoded(drawn(number)) for number in range(40)]
    images = {
        "bytes": files_,
        "struct": [{"bytes": data, "path": None} for data in files_],
        "struct without a path": [{"bytes": data} for data in files_],
    }[shape]
    found = [NAMES[number % 2] if labels == "text" else 3 + number % 2 for number in range(40)]
    (workspace / "data/raw/pets").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": found}), "data/raw/pets/train.parquet")
    prepare.main()
    names = NAMES if labels == "text" else ["3", "4"]
    assert prepared("train")["class_counts"] == dict.fromkeys(names, 12)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, 1.0, float("nan"), 1.0] * 10, "10 of 40 rows of train have no label (10 NaN)"),
        ([0.0, 1.0, float("nan"), None] * 10, "20 of 40 rows of train have no label (10 null, 10 NaN)"),
        (["cat", "dog", "", " "] * 10, "20 of 40 rows of train have no label (20 empty)"),
        ([["cat", "red"], ["dog"]] * 20, "the source has no column of labels, only image, label"),
    ],
)
def test_missing_labels_are_counted(workspace, labels, told):
    images = [{"bytes": encoded(drawn(number)), "path": None} for number in range(40)]
    (workspace / "data/raw/pets").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), "data/raw/pets/train.parquet")
    assert told in refused()


def test_a_test_split_with_hidden_labels_is_not_used(workspace, capsys):
    hidden = pets(10, first=100)
    hidden["label"] = [-1] * 10
    parquet(workspace / "data/raw/pets", train=pets(40), test=hidden)
    prepare.main()
    assert "prepare: the 10 images of test have no labels (-1): they are not used" in capsys.readouterr().out
    assert counts() == {"train": 24, "val": 8, "test": 8}


def test_one_of_several_configurations_is_chosen(workspace):
    folder = workspace / "data/raw/pets"
    parquet(folder, train=pets(40))
    parquet(folder / "more", train=pets(60))
    card = "---\nconfigs:\n"
    for name, path in (("small", "plain_text"), ("large", "more/plain_text")):
        card += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {path}/train-*\n"
    (folder / "README.md").write_text(card + "---\n")
    assert "has several configurations: set data.config to one of 'small', 'large'" in refused()
    edit_params(workspace, {"data": {"config": "medium"}})
    assert "set data.config to one of 'small', 'large'" in refused()
    edit_params(workspace, {"data": {"config": "large"}})
    prepare.main()
    assert sum(counts().values()) == 60


@pytest.mark.parametrize("path", ["http://169.254.169.254/x.parquet", "hf://datasets/a/b", "/etc/x", "../x.parquet"])
def test_a_readme_that_names_files_elsewhere_is_refused_before_it_is_followed(workspace, monkeypatch, path):
    parquet(workspace / "data/raw/pets", train=pets(40))
    card = f"\n---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n"  # after a blank line too
    (workspace / "data/raw/pets/README.md").write_text(card)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: pytest.fail("it was followed"))
    assert f"refers to {path}, outside of it" in refused()


def test_splits_of_other_names_are_told(workspace, capsys):
    folder = workspace / "data/raw/pets"
    parquet(folder, train=pets(40), holdout=pets(6, first=100))
    splits_ = "".join(f"  - split: {name}\n    path: plain_text/{name}-*\n" for name in ("train", "holdout"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits_}---\n")
    prepare.main()
    assert "prepare: not used: holdout (6 images)" in capsys.readouterr().out


# ---------------------------------------------------------------- labels that contradict each other


def both_classes(folder: Path) -> None:
    """Images under two labels: 3 in train alone, 1 in train and test, 1 in test alone."""
    class_folders(folder / "train", 80)
    class_folders(folder / "test", 20, first=200)
    for number in (0, 2, 4):
        drawn(number).save(folder / f"train/dog/copy{number}.tiff")
    drawn(200).save(folder / "train/dog/copy200.png")
    drawn(202).save(folder / "test/dog/copy202.png")


def test_an_image_under_two_labels_is_refused_dropped_or_counted(workspace):
    both_classes(workspace / "data/raw/pets")
    message = refused()
    assert message.startswith("5 images have two labels (data.on_contradiction = fail; drop or count): ")
    assert "data/raw/pets/test/dog/copy202.png (dog): in test as cat" in message
    assert "data/raw/pets/train/dog/copy200.png (dog): in test as cat" in message
    edit_params(workspace, {"data": {"on_contradiction": "count", "on_duplicate": "count"}})
    prepare.main()
    assert sum(counts().values()) == 105
    edit_params(workspace, {"data": {"on_contradiction": "drop"}})
    prepare.main()
    assert counts()["test"] == 21  # never from test
    assert counts()["train"] + counts()["val"] == 84 - 3 * 2 - 1
    seen = {}
    for split in ("train", "val"):
        reader = ShardReader(f"data/shards/{split}")
        for digest, label in zip(reader.hashes, reader.labels.tolist(), strict=True):
            assert seen.setdefault(digest, label) == label


def test_16_bit_images_that_use_a_sliver_of_their_range_are_told_once(workspace, capsys):
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 4096, (9, 7), dtype=np.uint16)
        path = workspace / "data/raw/pets" / NAMES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    prepare.main()
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "16-bit" in line]
    assert re.search(r"the brightest pixel of 40 images of 16-bit gray is 4\d\d\d of 65535", told)


def test_the_background_shows_where_images_are_transparent(workspace):
    for number in range(40):
        icon = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        icon.putpixel((number % 8, number // 8), (0, 0, 0, 255))
        path = workspace / "data/raw/pets" / NAMES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        icon.save(path)
    for background, expected in (("white", [255] * 3), ("'#0000ff'", [0, 0, 255])):
        edit_params(workspace, {"data": {"background": background.strip("'")}})
        prepare.main()
        images = ShardReader("data/shards/train").gather(np.arange(24))
        assert images[0].flatten(0, 1).median(0).values.tolist() == expected


# ---------------------------------------------------------------- groups


def patients(folder: Path, layout: str) -> None:
    for number in range(240):
        path = folder / NAMES[number % 2] / layout.format(patient=number // 6, visit=number % 5, number=number)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(path)


@pytest.mark.parametrize(
    ("layout", "group"),
    [
        ("patient{patient}/{number}.png", "folder"),
        ("patient{patient}/visit{visit}/{number}.png", "folder"),
        ("patient{patient}_{number}.png", r"^(patient\d+)_"),
        ("patient{patient}_{number}.png", r"patient\d+"),
    ],
)
def test_a_group_is_never_on_both_sides(workspace, layout, group):
    patients(workspace / "data/raw/pets", layout)
    edit_params(workspace, {"data": {"group": group}})
    prepare.main()
    patient = {decode.digest(drawn(number)).hex(): number // 6 for number in range(240)}
    sides = [{patient[h] for h in ShardReader(f"data/shards/{name}").hashes} for name in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 40
    assert sum(counts().values()) == 240
    assert abs(counts()["test"] - 48) <= 12 and abs(counts()["val"] - 48) <= 12  # a fifth, then a quarter of the rest
    for name in ("train", "val", "test"):
        cats, dogs = prepared(name)["class_counts"].values()
        assert cats == dogs  # each patient has as many of each


def test_a_column_can_be_the_group(workspace):
    rows = pets(120)
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "patient": datasets.Value("int64")}
    (workspace / "data/raw/pets").mkdir()
    table = {**rows, "patient": [number // 6 for number in range(120)]}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet("data/raw/pets/train.parquet")
    edit_params(workspace, {"data": {"group": "patient"}})
    prepare.main()
    patient = {decode.digest(drawn(number)).hex(): number // 6 for number in range(120)}
    sides = [{patient[h] for h in ShardReader(f"data/shards/{name}").hashes} for name in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20


def test_groups_that_the_sources_own_splits_share_are_refused(workspace):
    patients(workspace / "data/raw/pets/train", "patient{patient}_{number}.png")
    class_folders(workspace / "data/raw/pets/test", 8, first=500)
    drawn(900).save(workspace / "data/raw/pets/test/cat/patient3_x.png")
    edit_params(workspace, {"data": {"group": r"^(patient\d+)_|^\d+"}})
    for path in (workspace / "data/raw/pets/test").rglob("00*.png"):
        path.rename(path.with_name(f"patient9{path.name[:3]}_.png"))
    assert "1 groups are in test and in " in refused()


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("folder", "data.group = folder, but cat/000.png lies in no folder inside its class"),
        ("(", "data.group = ( is not a regular expression: "),
        ("patient", "data.group = patient finds nothing in the file name 000.png"),
        (".*png$", None),
        ("png", "data.group: all images are of one group, png"),
    ],
)
def test_a_group_that_cannot_be_told_is_one_line(workspace, group, expected):
    class_folders(workspace / "data/raw/pets", 40)
    edit_params(workspace, {"data": {"group": group}})
    if expected is None:
        prepare.main()
    else:
        assert expected in refused()


@pytest.mark.parametrize(
    ("each", "fractions", "expected"),
    [
        (
            3,
            {"test_fraction": 0.2},
            "data.test_fraction = 0.2 of 30 images is 6, which leaves less than one of each of ",
        ),
        (
            4,
            {"test_fraction": 0.3},
            "data.val_fraction = 0.25 of 28 images is 7, which leaves less than one of each of ",
        ),
        (
            2,
            {"test_fraction": 0.5},
            "data.val_fraction = 0.25 cannot share out the class 'class0': it has 1 image; each",
        ),
    ],
)
def test_thin_classes_are_told_with_the_fraction_that_would_do(workspace, each, fractions, expected):
    class_folders(workspace / "data/raw/pets", 10 * each, names=[f"class{number}" for number in range(10)])
    edit_params(workspace, {"data": fractions})
    message = refused()
    assert message.startswith(expected)
    if found := re.search(r"(\S+)_fraction = .*choose (\S+) to", message):  # and it would do
        edit_params(workspace, {"data": {f"{found[1].removeprefix('data.')}_fraction": float(found[2])}})
        with suppress(UserError):
            prepare.main()
            return
        assert not refused().startswith(f"{found[1]}_fraction")


@pytest.mark.parametrize(
    ("groups", "group", "expected"),
    [
        ([1.0, float("nan"), None, 2.0], "patient", "rows of train have no patient (10 null, 10 NaN)"),
        (["a", "b", "", "c"], "patient", "10 of 40 rows of train have no patient (10 empty)"),
        (["a", "b", "c", "d"], "label", "data.group = label is the column of the images or of the labels"),
    ],
)
def test_a_missing_group_is_counted_and_the_labels_are_none(workspace, groups, group, expected):
    images = [{"bytes": encoded(drawn(number)), "path": None} for number in range(40)]
    table = pyarrow.table({"image": images, "label": NAMES * 20, "patient": groups * 10})
    (workspace / "data/raw/pets").mkdir()
    pyarrow.parquet.write_table(table, "data/raw/pets/train.parquet")
    edit_params(workspace, {"data": {"group": group, "label_column": "label"}})
    assert expected in refused()


def test_findings_name_the_file_beside_a_table_of_labels(workspace):
    folder = workspace / "data/raw/pets"
    folder.mkdir()
    for number in range(40):
        drawn(number).save(folder / f"{number}.png")
    (folder / "7.png").write_bytes(b"not an image")
    rows = [json.dumps({"file_name": f"{number}.png", "label": NAMES[number % 2]}) for number in range(40)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert "1 images cannot be read" in (message := refused()) and "data/raw/pets/7.png: not an image" in message


def test_settings_of_the_hub_in_a_local_folder_are_refused(workspace):
    parquet(workspace / "data/raw/pets", train=pets(40))
    (workspace / "data/raw/pets/.huggingface.yaml").write_text("configs: []")
    assert "data/raw/pets/.huggingface.yaml would change what `datasets` reads" in refused()


@pytest.mark.parametrize(
    "error", [MemoryError(), *(OSError(code, "") for code in (errno.EMFILE, errno.ENOTCONN, errno.EIO, errno.EACCES))]
)
def test_what_the_machine_lacks_for_a_moment_is_not_said_of_an_image(monkeypatch, error):
    def lacks(*_):
        raise error

    monkeypatch.setattr(sources, "read", lacks)
    with pytest.raises(type(error)):
        decode_rows(Resize(32, "stretch"), [({"bytes": b"", "path": None}, 0, "row 0")])


def test_full_memory_while_decoding_is_not_said_of_an_image(monkeypatch):
    def full(_):
        raise MemoryError

    monkeypatch.setattr(decode, "_upright", full)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with pytest.raises(MemoryError):
        decode.decode(file.getvalue())
