import json

import pytest
from conftest import command
from PIL import Image
from sklearn.datasets import load_digits

from image_classifier import predict
from image_classifier.errors import UserError


@pytest.fixture
def pictures(project):
    folder = project / "pictures"
    folder.mkdir()
    digits = load_digits()
    for number in range(3):
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(folder / f"{number}.png")
    return folder


def test_a_folder_comes_out_as_json_with_an_unreadable_file_named(pictures, capsys):
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("not looked at")
    assert predict.main([str(pictures)], top_k=5, as_json=True) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["path"] for row in rows] == [str(pictures / f"{n}.png") for n in range(3)]
    confidences = [p["confidence"] for p in rows[0]["predictions"]]
    assert len(confidences) == 5 and confidences == sorted(confidences, reverse=True)
    assert err.count("\n") == 1 and "broken.png: not a picture" in err


def test_the_command_prints_a_table(project, pictures):
    result = command(project, "python", "-m", "image_classifier", "predict", "pictures/0.png", "--top-k", "2")
    assert "pictures/0.png" in result.stdout and result.stdout.count("%") == 2


@pytest.mark.parametrize("name", ["missing.png", "pictures"])
def test_nothing_to_predict_is_an_error(project, name):
    (project / "pictures").mkdir(exist_ok=True)
    result = command(project, "python", "-m", "image_classifier", "predict", name, ok=False)
    assert result.returncode == 1 and "Traceback" not in result.stderr


def test_a_damaged_model_is_one_line(project):
    path = project / "models/export/model.onnx"
    path.unlink()
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="cannot be loaded"):
        predict.Predictor()


def test_doctor_finds_the_project_fit(project):
    result = command(project, "python", "-m", "image_classifier", "doctor")
    assert "4 of 4 checks passed" in result.stdout


def test_doctor_names_what_is_wrong(project, change):
    change({"training": {"optimizer": "lion"}})
    result = command(project, "python", "-m", "image_classifier", "doctor", ok=False)
    assert result.returncode == 1
    assert "FAIL  params" in result.stdout and "training.optimizer = 'lion'" in result.stdout
