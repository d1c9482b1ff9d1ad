import json
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from image_classifier import __main__ as command_line
from image_classifier.commands import doctor, predict
from image_classifier.commands.predict import Predictor
from image_classifier.core import files
from image_classifier.core.entry import exit_with
from image_classifier.core.errors import UserError
from tests.helpers.project import AS_A_USER, ROOT, command


@pytest.fixture
def images(project):
    folder = project / "images"
    folder.mkdir()
    digits = load_digits()
    for number in range(3):
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(folder / f"{number}.png")
    return folder


def classify(*paths, top_k=5, threshold=0.0, as_json=False, output=None, backend="onnx") -> int:
    return predict.main(list(paths), predict.MODELS, top_k, threshold, as_json, output, backend)


def test_a_folder_comes_out_as_json_with_an_unreadable_file_named(images, capsys):
    (images / "broken.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("not looked at")
    assert classify(str(images), as_json=True) == 1
    out, err = capsys.readouterr()
    *rows, broken = json.loads(out)
    assert [row["path"] for row in rows] == [str(images / f"{n}.png") for n in range(3)]
    assert broken == {"path": str(images / "broken.png"), "predictions": [], "error": broken["error"]}
    assert broken["error"].startswith("not an image")
    confidences = [p["confidence"] for p in rows[0]["predictions"]]
    assert len(confidences) == 5 and confidences == sorted(confidences, reverse=True)
    assert err.count("error: ") == 1 and "broken.png: not an image" in err and "images/s" in err


def test_the_command_prints_a_table(project, images):
    result = command(project, "python", "-m", "image_classifier", "predict", "images/0.png", "--top-k", "2")
    assert "images/0.png" in result.stdout and result.stdout.count("%") == 2


def test_an_image_does_not_wait_for_what_it_does_not_need(project, images):
    classify_it = "import sys; from image_classifier.commands import predict; "
    classify_it += "predict.main(['images/0.png'], predict.MODELS, 1, 0.0, False, None, 'onnx'); print(*sys.modules)"
    loaded = command(project, "python", "-c", classify_it).stdout.split()
    assert "onnxruntime" in loaded and not {"transformers", "torchvision", "pandas", "mlflow", "dvc"} & set(loaded)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_holds_what_json_holds(images, tmp_path, capsys, suffix):
    classify(str(images), as_json=True)
    expected = [
        (row["path"], found["class"], found["confidence"])
        for row in json.loads(capsys.readouterr().out)
        for found in row["predictions"]
    ]
    output = tmp_path / f"predictions{suffix}"
    assert classify(str(images), output=output) == 0
    read = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}[suffix]
    table = read(output)
    assert list(table["path"]) == [path for path, _, _ in expected]
    assert list(table["class"].astype(str)) == [name for _, name, _ in expected]
    assert table["confidence"].tolist() == pytest.approx([confidence for *_, confidence in expected])


def test_torch_says_the_same_as_onnx_runtime_in_any_batch(images, tmp_path, monkeypatch):
    classify(str(images), output=tmp_path / "onnx.csv")
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    classify(str(images), output=tmp_path / "torch.csv", backend="torch")
    ours, theirs = pd.read_csv(tmp_path / "onnx.csv"), pd.read_csv(tmp_path / "torch.csv")
    assert list(ours["class"]) == list(theirs["class"]) and len(ours) == 15
    assert ours["confidence"].tolist() == pytest.approx(theirs["confidence"].tolist(), abs=1e-5)


def test_a_threshold_leaves_out_what_is_less_probable(images, tmp_path):
    classify(str(images), output=tmp_path / "all.csv", top_k=10)
    everything = pd.read_csv(tmp_path / "all.csv")
    middle = everything["confidence"].median()
    classify(str(images), output=tmp_path / "some.csv", top_k=10, threshold=middle)
    assert len(pd.read_csv(tmp_path / "some.csv")) == (everything["confidence"] >= middle).sum()
    classify(str(images), output=tmp_path / "none.csv", threshold=1.0)
    none = pd.read_csv(tmp_path / "none.csv")  # a row each all the same, without a class
    assert list(none.columns) == ["path", "class", "confidence", "error"]
    assert len(none) == 3 and none[["class", "error"]].isna().all(axis=None)


def test_odd_images_are_classified_or_told_in_one_line(images, capsys):
    Image.new("L", (1, 1)).save(images / "pixel.png")
    Image.new("L", (10_000, 10_000)).save(images / "large.png")  # 100 megapixels
    Image.new("L", (20_000, 20_000)).save(images / "bomb.png")
    assert classify(str(images)) == 1
    out, err = capsys.readouterr()
    assert "pixel.png  " in out and "large.png  " in out
    assert len([line for line in err.splitlines() if "bomb.png" in line]) == 1


@pytest.mark.parametrize("words", [("--threshold", "1.5"), ("--threshold", "x"), ("--top-k", "0")])
def test_options_out_of_range_are_refused(project, words):
    result = command(project, "python", "-m", "image_classifier", "predict", "x.png", *words, ok=False)
    assert result.returncode == 2 and words[1] in result.stderr and "Traceback" not in result.stderr


def test_a_table_of_another_kind_is_refused(images, tmp_path):
    with pytest.raises(UserError, match=r"must end in one of \.csv, \.json, \.parquet"):
        classify(str(images), output=tmp_path / "predictions.xlsx")


def test_a_folder_is_not_replaced_by_a_table(images, tmp_path):
    (kept := tmp_path / "photos.csv/photo.png").parent.mkdir()
    kept.touch()
    with pytest.raises(UserError, match="photos.csv cannot be written: .*Is a directory"):
        classify(str(images), output=kept.parent)
    assert kept.exists()


def test_a_table_that_cannot_be_written_is_refused_before_any_work(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="out.csv cannot be written"):
        classify("missing.png", output=tmp_path / "file/out.csv")


def test_an_image_that_cannot_be_read_has_a_row(images, tmp_path):
    (images / "1.png").write_bytes(b"no image")
    assert classify(str(images), output=tmp_path / "out.csv", top_k=1) == 1
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 3 and table.loc[1, "error"].startswith("not an image") and table["class"].isna().tolist()[1]


def test_a_link_to_a_folder_is_followed_once(images, tmp_path):
    (tmp_path / "others").mkdir()
    shutil.copy(images / "0.png", tmp_path / "others/3.png")
    for name in ("more", "again"):
        (images / name).symlink_to(tmp_path / "others")
    (tmp_path / "others/back").symlink_to(images)
    assert classify(str(images), output=tmp_path / "out.csv", top_k=1) == 0
    found = [str(Path(path).relative_to(images)) for path in pd.read_csv(tmp_path / "out.csv")["path"]]
    assert found == ["0.png", "1.png", "2.png", "again/3.png"]


def test_a_folder_that_must_not_be_read_is_not_passed_over(project, images):
    (images / "closed").mkdir(mode=0)
    words = ["python", "-m", "image_classifier", "predict", "images"]
    result = command(project, *AS_A_USER, *words, ok=False)
    (images / "closed").chmod(0o700)
    assert result.returncode == 1 and "images/closed cannot be read: Permission denied" in result.stderr


def test_a_model_kept_elsewhere(images, tmp_path, capsys):
    shutil.copytree("models/export", tmp_path / "kept")
    shutil.rmtree("models/export")
    words = [str(images / "0.png"), "--model", str(tmp_path / "kept")]
    assert command_line.main(["predict", *words]) == command_line.main(["predict", *words, "--torch"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and "0.png" in first


@pytest.mark.parametrize("name", ["missing.png", "images"])
def test_nothing_to_predict_is_an_error(project, monkeypatch, capsys, name):
    (project / "images").mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["image_classifier", "predict", name])
    with pytest.raises(SystemExit) as ended:
        exit_with(command_line.main)
    assert ended.value.code == 1 or str(ended.value.code).startswith("error: ")
    assert name in capsys.readouterr().err + str(ended.value.code)


def test_a_damaged_model_is_one_line(project):
    path = project / "models/export/model.onnx"
    path.unlink()
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded"):
        Predictor.from_onnx()


def test_a_file_beside_the_model_does_no_harm(project):
    for folder in ("models/export", "models/export/hf"):
        (project / folder / ".DS_Store").write_bytes(b"left by macOS")
        (project / folder / "notes.txt").write_text("mine")
    Predictor.from_onnx()
    Predictor.from_torch()


def test_doctor_does_not_download_a_dataset(project, change, capsys):
    change({"data": {"source": "uoft-cs/cifar10", "revision": "0" * 40}})
    doctor.main()
    assert "uoft-cs/cifar10 is on the hub and was not looked at" in capsys.readouterr().out


def test_doctor_finds_the_project_fit(project):
    result = command(project, "python", "-m", "image_classifier", "doctor")
    assert "4 of 4 checks passed" in result.stdout


def test_doctor_names_what_is_wrong(project, change, capsys):
    change({"training": {"optimizer": "lion"}})
    assert doctor.main() == 1
    told = capsys.readouterr().out
    assert "FAIL  params" in told and "training.optimizer = 'lion'" in told


def test_doctor_names_packages_that_are_not_the_locked_ones(project, capsys):
    locked = (ROOT / "requirements.txt").read_text()
    (project / "requirements.txt").write_text(locked)
    assert doctor.main() == 0
    (project / "requirements.txt").write_text(re.sub(r"^torch==\S+", "torch==1.0", locked, flags=re.M))
    assert doctor.main() == 1
    assert re.search(r"FAIL  python       torch \S+ \(locked: 1.0\): results depend", capsys.readouterr().out)


def test_doctor_goes_on_without_git(project, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert doctor.main() == 1
    told = capsys.readouterr().out
    assert "FAIL  repository   git is not installed" in told and "ok    model" in told


def test_doctor_tells_of_unfinished_trainings_and_of_names_that_dvc_cannot_read(project, capsys):
    state = project / ".resume/abandoned"
    state.mkdir()
    (state / "epoch-00001-0.pt").write_bytes(bytes(3_000_000))
    (project / "data/raw/pets/cat").mkdir(parents=True)
    (project / "data/raw/pets/cat/cafe.png").touch()
    doctor.main()
    assert ".resume keeps 1 unfinished trainings (3 MB)" in capsys.readouterr().out
    (project / "data/raw/pets/cat/cafe.png").rename(
        os.fsdecode(os.fsencode(project) + b"/data/raw/pets/cat/caf\xe9.png")
    )
    assert doctor.main() == 1
    told = capsys.readouterr().out
    assert r"data/raw/pets/cat/caf\xe9.png: its name is not UTF-8" in told


def test_the_same_files_are_images_for_predict_as_for_prepare(images, capsys):
    """Hidden files and others that are no images are left out and told; a name that ends as an image's is tried."""
    shutil.copy(images / "0.png", images / "no_ending")
    for name in ("._1.png", "Thumbs.db", "manual.pdf", "film.mpg", ".hidden"):
        (images / name).write_bytes(b"\0\x05\x16\x07" * 20)
    assert classify(str(images), as_json=True) == 0
    out, err = capsys.readouterr()
    assert [row["path"].rpartition("/")[2] for row in json.loads(out)] == ["0.png", "1.png", "2.png", "no_ending"]
    assert "left out: 5 hidden files or files that are not images" in err and "manual.pdf" in err
    (images / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    assert classify(str(images), as_json=True) == 1
    assert "phone.heic: " in capsys.readouterr().err


def test_a_table_has_the_path_as_it_is(images, tmp_path):
    name = "Screenshot 3.04\u202fPM \U0001f468\u200d\U0001f469.png"
    (images / "0.png").rename(images / name)
    classify(str(images / name), output=tmp_path / "out.csv", top_k=1)
    assert pd.read_csv(tmp_path / "out.csv")["path"].tolist() == [str(images / name)]


def test_a_model_of_an_older_version_is_one_line(project):
    path = project / "models/export/hf/preprocessor_config.json"
    text = path.read_text().replace('"background"', '"backdrop"')
    path.write_text(text)
    files.seal(path.parent)
    with pytest.raises(UserError, match="hf was made by an older version of this project: run `dvc repro"):
        Predictor.from_torch()
