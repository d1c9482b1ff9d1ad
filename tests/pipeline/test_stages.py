"""The real stages on the tiny set-up: what they write, and what they refuse."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from ruamel.yaml import YAML
from safetensors.torch import load_file

from image_classifier.commands.predict import Predictor
from image_classifier.commands.recipe import apply
from image_classifier.core import config, files, tables
from image_classifier.core.entry import exit_with
from image_classifier.core.errors import UserError
from image_classifier.evaluation.tables import write_evaluation
from image_classifier.export import formats
from image_classifier.export.card import write_card
from image_classifier.images.resize import Resize
from image_classifier.images.shards import ShardReader
from image_classifier.model import checkpoint, numerics
from image_classifier.model.batches import batches
from image_classifier.model.inference import predict_in_fp32
from image_classifier.model.normalize import IMAGENET_MEAN, Normalize
from image_classifier.preparation import decode, sources
from image_classifier.reporting import report
from image_classifier.training.build import build_network
from image_classifier.training.trainer import Trainer
from stages import evaluate, export, prepare, train
from stages import report as stages_report
from tests.helpers.architectures import KINDS, hub_folder, timm_folder
from tests.helpers.project import command, edit_params, read, series
from tests.helpers.training import validations

INDEX, RECIPES = Path("data/shards/train/index.json"), Path("recipes")


def test_prepare_writes_three_splits(trained):
    for name, count in (("train", 200), ("val", 180), ("test", 360)):
        index = read(trained / "data/shards" / name / "index.json")
        assert index["count"] == count
        assert index["class_names"] == list("0123456789")


def test_train_learns_and_logs_every_epoch(trained):
    losses = series(trained, "train_loss")
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    for name in ("train_accuracy", "val_loss", "val_accuracy", "val_precision", "val_recall", "val_f1_score"):
        assert len(series(trained, name)) == 3
    assert len(set(series(trained, "learning_rate"))) == 3


def test_metrics_json_is_the_best_epochs(trained):
    values = read(trained / "metrics/train/metrics.json")
    assert values.keys() == {"best_epoch", "val_accuracy", "val_loss"}
    assert series(trained, "image_size") == [32, 64, 64]
    accuracies = series(trained, "val_accuracy")
    assert values["val_accuracy"] == max(accuracies[1:]) == accuracies[values["best_epoch"]]  # at full size


def test_checkpoint_is_a_hugging_face_folder(trained):
    folder = trained / "models/checkpoint"
    names = ["SHA256SUMS", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    command(folder, "sha256sum", "--check", "--strict", "SHA256SUMS")
    network, normalize, resize = checkpoint.load(folder)
    assert resize == Resize(64, "stretch") and normalize.mean == IMAGENET_MEAN
    assert list(network.config.id2label.values()) == list("0123456789")


def test_nothing_is_left_to_resume(trained):
    assert {path.suffix for path in (trained / ".resume").iterdir()} <= {".lock"}
    assert not list(trained.rglob("*.unfinished"))


def test_evaluate_writes_plain_numbers_and_every_prediction(trained):
    values = read(trained / "metrics/evaluate/metrics.json")
    assert all(isinstance(value, int | float) for value in values.values())
    assert values.keys() == {"accuracy", "precision", "recall", "f1_score", "loss", "calibration_error"}
    with open(trained / "metrics/evaluate/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 360
    assert [row["image"] for row in rows] == ShardReader(trained / "data/shards/test").hashes
    assert np.mean([row["actual"] == row["predicted"] for row in rows]) == pytest.approx(values["accuracy"])


def test_evaluate_agrees_with_what_training_measured_on_val(project):
    shutil.rmtree("data/shards/test")
    shutil.copytree("data/shards/val", "data/shards/test")
    evaluate.main()
    best, evaluated = read(project / "metrics/train/metrics.json"), read(project / "metrics/evaluate/metrics.json")
    for name in ("accuracy", "precision", "recall", "f1_score"):
        assert evaluated[name] == pytest.approx(series(project, f"val_{name}")[best["best_epoch"]], abs=1e-9)
    assert evaluated["loss"] == pytest.approx(best["val_loss"], rel=1e-4)


def test_export_is_the_evaluated_model(trained):
    exported, evaluated = read(trained / "metrics/export/metrics.json"), read(trained / "metrics/evaluate/metrics.json")
    assert exported["onnx_agreement"] == 1.0
    parity = tables.read_parity(trained / "metrics/export/parity.csv")
    assert parity.at["onnx", "accuracy"] == pytest.approx(evaluated["accuracy"]) and list(parity.index) == [
        "onnx",
        "hf",
    ]
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert files.sha256(trained / "models/checkpoint" / name) == files.sha256(trained / "models/export/hf" / name)
    checkpoint.load(trained / "models/export/hf")  # sealed, with its card


def test_hugging_faces_own_pipeline_agrees_with_evaluate_on_every_test_image(trained, tmp_path):
    classify = transformers.pipeline("image-classification", model=str(trained / "models/export/hf"))
    # The test images themselves, found again by the hashes of their pixels.
    with open(trained / "metrics/evaluate/predictions.csv") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    digits = sources.load(config.load(trained / "params.yaml").data, tmp_path)["train"]
    images = [decode.decode(image["bytes"]) for image in digits["image"]]
    chosen = {digest: p for p in images if (digest := decode.digest(p).hex()) in rows}
    assert len(chosen) == len(rows) == 360
    for (digest, row), found in zip(
        ((d, rows[d]) for d in chosen), classify(list(chosen.values()), top_k=1, batch_size=32), strict=True
    ):
        assert found[0]["label"] == row["predicted"], digest
        assert found[0]["score"] == pytest.approx(float(row["confidence"]), abs=1e-5)


def rows_of(text: str) -> list[list[str]]:
    """The rows of a text's Markdown tables, as cells."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_report_and_the_card_hold_the_figures_of_the_metrics_files(trained):
    text, card = (trained / "metrics/report.md").read_text(), (trained / "models/export/hf/README.md").read_text()
    best, test = read(trained / "metrics/train/metrics.json"), read(trained / "metrics/evaluate/metrics.json")
    of_train = series(trained, "train_accuracy")[best["best_epoch"]]
    accuracies = (of_train, best["val_accuracy"], test["accuracy"], of_train - test["accuracy"])
    rows = rows_of(text)
    assert ["accuracy", *(f"{value:.4f}" for value in accuracies)] in rows
    for epoch, loss in enumerate(series(trained, "train_loss"), 1):
        assert [str(epoch), f"{loss:.4f}"] in [row[:3:2] for row in rows]
    found = tables.read_intervals(trained / "metrics/evaluate/intervals.csv").loc["accuracy"]
    assert found["value"] == test["accuracy"]
    interval = ["accuracy", *(f"{value:.4f}" for value in found)]
    assert interval in rows and interval in rows_of(card)
    assert f"`{files.sha256(trained / 'models/checkpoint/model.safetensors')}`" in text
    assert "learning_rate: 0.01" in text and "seed: 0" in text
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (trained / "metrics" / name).is_file()
    assert "published" not in text  # another recipe
    front = YAML(typ="safe").load(card.split("---")[1])
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "name": "accuracy", "value": round(test["accuracy"], 4)}
    assert result["dataset"]["split"] == "test"
    assert not re.search(r"20\d\d-|\d+:\d\d|seconds", text + card)  # no time of day, no duration


def test_the_published_recipe_is_reported_beside_the_published_figures(project):
    apply("cifar10")
    for source in ("uoft-cs/cifar10", "data/raw/cifar10"):
        edit_params(project, {"data": {"source": source}})
        stages_report.main()
        write_card(project / "card.md", config.load(), "0" * 64, project / "metrics/evaluate", INDEX)
        text, card = (project / "metrics/report.md").read_text(), (project / "card.md").read_text()
        test = read(project / "metrics/evaluate/metrics.json")
        assert ["", "train", "val", "test", "train - test", "test, published"] in rows_of(text)
        assert [f"{test['f1_score']:.4f}", "0.9019"] in [row[3::2] for row in rows_of(text)]
        assert "1,000 images, not the 5,000" in text
        assert "license_name: apple-sample-code-license" in card


def test_what_weakens_the_figures_is_said(project):
    edit_params(project, {"data": {"group": "patient", "on_duplicate": "count"}})
    for split, count in (("train", 3), ("val", 2)):
        path = project / f"data/shards/{split}/index.json"
        index = read(path)
        index["findings"]["duplicates"] = ["as another"] * count
        index["findings"]["near_duplicates"] = ["near another"] * count
        path.unlink()
        files.write_json(path, index)
    stages_report.main()
    write_card(project / "card.md", config.load(), "0" * 64, project / "metrics/evaluate", INDEX)
    for path in (project / "metrics/report.md", project / "card.md"):
        text = path.read_text()
        assert "(3 training images are identical, pixel for pixel, to images of val or test, 2 val images to" in text
        assert "too narrow" in text
        assert "5 training and val images are near-duplicates of images in other splits" in text
        assert not re.search(r"[^\n]\n#", text)  # a blank line before each heading


def test_galleries_and_tables_survive_odd_names_and_no_mistakes(project, tmp_path):
    test = ShardReader("data/shards/test")
    test.class_names = ["NA", "a|b", "__init__", "a very long name of a class", "<b>bold", "two\nlines", *"6789"]
    right = np.eye(10, dtype="float32")[test.labels] * 0.91 + 0.009
    values = write_evaluation(tmp_path / "right", test.labels.numpy(), right, test)
    assert values.at["accuracy", "value"] == 1 and (tmp_path / "right/mistakes.png").is_file()
    write_evaluation(tmp_path / "wrong", test.labels.numpy(), np.roll(right, 1, axis=1), test)
    write_evaluation(tmp_path / "again", test.labels.numpy(), np.roll(right, 1, axis=1), test)
    for path in (tmp_path / "wrong").iterdir():
        assert files.sha256(path) == files.sha256(tmp_path / "again" / path.name)
    shutil.rmtree("metrics/evaluate")
    shutil.copytree(tmp_path / "wrong", "metrics/evaluate")
    stages_report.main()
    text = (project / "metrics/report.md").read_text()
    classes = text[text.index("## Classes") : text.index("## Images")]
    for line in classes.splitlines():
        if line.startswith("|"):
            assert line.replace(r"a\|b", "").count("|") in (4, 8), line  # as many as the cells need
    assert "NA " in classes and "&lt;b&gt;bold" in classes and r"two\\nlines" in classes
    assert r"\_\_init\_\_" in classes


def test_onnx_bytes_do_not_depend_on_the_folder(project, trained):
    (project / "models/export/model.onnx").unlink()
    shutil.rmtree("models/export")
    export.main()
    assert files.sha256("models/export/model.onnx") == files.sha256(trained / "models/export/model.onnx")
    assert str(project).encode() not in (project / "models/export/model.onnx").read_bytes()


@pytest.fixture
def exporter(project, trained, monkeypatch) -> None:
    """torch's exporter takes seconds and writes the same bytes again, as the test above shows: it is left out."""
    monkeypatch.setattr(export, "to_onnx", lambda path, *_: shutil.copyfile(trained / "models/export/model.onnx", path))


@pytest.mark.usefixtures("exporter")
def test_export_refuses_a_model_that_is_not_the_same(project, monkeypatch):
    before = files.sha256("models/export/model.onnx")
    real = predict_in_fp32
    monkeypatch.setattr(export, "predict_in_fp32", lambda *a: (lambda y, p: (y, np.roll(p, 1, axis=1)))(*real(*a)))
    with pytest.raises(
        UserError, match=r"predictions.csv is not of this checkpoint .*: run `dvc repro -f -s evaluate`"
    ):
        export.main()
    monkeypatch.setattr(export, "predict_in_fp32", real)
    run_onnx = formats.run_onnx
    monkeypatch.setattr(formats, "run_onnx", lambda *a: np.roll(run_onnx(*a), 1, axis=1))
    with pytest.raises(UserError, match="the ONNX model agrees with torch on 0"):
        export.main()
    assert files.sha256("models/export/model.onnx") == before


@pytest.mark.parametrize("name", ["checkpoint", pytest.param("none", marks=pytest.mark.full)])
def test_each_normalization_is_the_same_in_training_onnx_and_hugging_faces_pipeline(project, change, name):
    transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size=64).save_pretrained("tiny-model")
    change({"data": {"normalization": name}, "training": {"num_epochs": 1, "resolution_schedule": None}})
    for stage in (train, evaluate, export):  # the last one refuses what disagrees
        stage.main()
    exported = read(project / "metrics/export/metrics.json")
    assert exported["onnx_agreement"] == exported["hf_agreement"] == 1
    assert tables.read_parity(Path("metrics/export/parity.csv")).at["hf", "max_probability_difference"] < 1e-5
    processing = read(project / "models/export/hf/preprocessor_config.json")
    assert bool(processing.get("do_flip_channel_order")) == (name == "checkpoint")  # BGR, as MobileViT was trained


def test_recipes_of_the_users_own_do_not_stop_the_report(project):
    Path("recipes/empty.yaml").write_text("# nothing\n")
    Path("recipes/odd.yaml").write_text("published: {accuracy: 1}\ndata: {unknown: 1}\n")
    stages_report.main()
    Path("recipes/broken.yaml").write_text("a: [1\n")
    with pytest.raises(UserError, match="broken.yaml is not valid YAML"):
        stages_report.main()


def test_only_the_published_recipe_is_compared_with_what_was_published(project):
    apply("cifar10")
    recipe = config.load()
    assert report.published_figures(recipe, RECIPES)["accuracy"] == 0.9020
    for section, key, value in (
        ("training", "optimizer", "sgd"),
        ("training", "fast_mode", False),
        ("training", "scheduler", "cosine"),
        ("model", "freeze_backbone", True),
        ("data", "normalization", "none"),
        ("data", "source", "data/raw/not-cifar10"),
    ):
        part = getattr(recipe, section).model_copy(update={key: value})
        assert report.published_figures(recipe.model_copy(update={section: part}), RECIPES) == {}, key


@pytest.mark.usefixtures("exporter")
def test_an_int8_model_ships_beside_the_float_one(project, change):
    change({"export": {"int8": True, "max_int8_loss": 0.02}})
    export.main()
    values, path = read(project / "metrics/export/metrics.json"), project / "models/export/model-int8.onnx"
    stages_report.main()
    assert "| int8 " in (project / "metrics/report.md").read_text()
    parity = tables.read_parity(Path("metrics/export/parity.csv"))
    assert parity.at["int8", "ships"] and parity.at["int8", "bytes"] == path.stat().st_size < parity.at["onnx", "bytes"]
    assert parity.at["int8", "max_relative_error"] > 0 and parity.at["int8", "agreement"] > 0.9
    types = {weight.data_type for weight in onnx.load(path).graph.initializer if weight.dims}
    assert onnx.TensorProto.INT8 in types
    test = ShardReader("data/shards/test")
    classify = Predictor.from_onnx(path)
    assert classify.class_names == test.class_names
    right = classify.classify(test.gather(np.arange(360))).argmax(axis=1) == test.labels.numpy()
    assert right.mean() == values["int8_accuracy"]


@pytest.mark.usefixtures("exporter")
def test_an_int8_model_that_loses_too_much_is_reported_and_left_out(project, change, monkeypatch):
    change({"export": {"int8": True}})
    real = formats.run_onnx
    wrong = {"model.onnx": 0, "model-int8.onnx": 1}
    monkeypatch.setattr(formats, "run_onnx", lambda p, *a: np.roll(real(p, *a), wrong[p.name], axis=1))
    export.main()
    int8 = tables.read_parity(Path("metrics/export/parity.csv")).loc["int8"]
    assert not int8["ships"] and int8["accuracy_difference"] < -0.005
    assert sorted(path.name for path in (project / "models/export").iterdir()) == ["SHA256SUMS", "hf", "model.onnx"]
    stages_report.main()
    assert "The int8 model was left out" in (project / "metrics/report.md").read_text()


@pytest.mark.usefixtures("exporter")
def test_an_int8_model_with_nothing_in_int8_is_refused(project, change):
    change({"export": {"int8": True, "int8_operators": ["Gemm"]}})  # MobileViT's only one is the last layer
    before = files.sha256("models/export/model.onnx")
    with pytest.raises(UserError, match="export.int8_operators"):
        export.main()
    assert files.sha256("models/export/model.onnx") == before


def test_training_again_gives_the_same_bytes(project, trained):
    shutil.rmtree("models/checkpoint")
    train.main()
    assert files.sha256("models/checkpoint/model.safetensors") == files.sha256(
        trained / "models/checkpoint/model.safetensors"
    )


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(project, trained, monkeypatch):
    shutil.rmtree("models/checkpoint")
    calls = validations(monkeypatch, dies_in=2)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    train.main()
    assert len(calls) == 4  # the first epoch was not trained again
    assert files.sha256("models/checkpoint/model.safetensors") == files.sha256(
        trained / "models/checkpoint/model.safetensors"
    )
    assert series(project, "train_loss") == series(trained, "train_loss")


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_learns_and_stays_near_fp32(project, trained, change, name):
    change({"training": {"precision": name}})
    train.main()
    losses = series(project, "train_loss")
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, series(trained, "train_loss"), rtol=0.1)
    weights = load_file("models/checkpoint/model.safetensors")
    assert {t.dtype for t in weights.values() if t.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_model(project, change):
    change({"training": {"learning_rate": 1e30}})
    before = files.sha256("models/checkpoint/model.safetensors")
    with pytest.raises(UserError, match=r"at epoch 1, step \d+ of \d+, learning rate .*: lower training.learning_rate"):
        train.main()
    assert files.sha256("models/checkpoint/model.safetensors") == before


def test_a_step_that_overflows_is_skipped(project, change):
    change({"training": {"precision": "fp16"}})
    params = config.load()
    reader = ShardReader("data/shards/train")
    network = build_network(params.model, reader.class_names, 64, 0)
    chosen = numerics.resolve("cpu", "fp16")
    trainer = Trainer(network, Normalize(), chosen, params.training, 0, reader, reader)
    images, labels = next(batches(reader, 16))
    before = [p.clone() for p in network.parameters()]
    scale = trainer.stepper.scaler.get_scale()
    network.classifier.bias.register_hook(lambda gradient: gradient * torch.inf)
    network.train()
    trainer.stepper.step(images, labels, seed=0, size=32)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert trainer.stepper.scaler.get_scale() < scale


def test_a_frozen_backbone_stays_as_it_was(project, change):
    change({"model": {"freeze_backbone": True}})
    params = config.load()
    start = build_network(params.model, list("0123456789"), 64, params.seed).state_dict()
    train.main()
    trained = load_file("models/checkpoint/model.safetensors")
    changed = {name for name in trained if not torch.equal(trained[name], start[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_all_but_the_last_block_stays_as_it_was(project, change):
    """Its batch norm's statistics too: those of the frozen blocks stay, those of the last block follow."""
    change({"model": {"freeze_backbone": True, "unfreeze_blocks": 1}, "training": {"num_epochs": 1}})
    params = config.load()
    start = build_network(params.model, list("0123456789"), 64, params.seed).state_dict()
    train.main()
    trained = load_file("models/checkpoint/model.safetensors")
    changed = {name for name in trained if not torch.equal(trained[name], start[name])}
    last = {name for name in changed if name.startswith("mobilevit.encoder.layer.4.")}
    assert any("running_mean" in name for name in last)
    assert {name.split(".")[0] for name in changed - last} <= {"classifier", "mobilevit"}
    assert not [name for name in changed - last if name.startswith("mobilevit.") and "conv_1x1_exp" not in name]


def test_a_model_of_timm_goes_from_training_to_export_and_int8(project, change):
    path = timm_folder(project / "models/pretrained/timm", "test_efficientnet")
    change(
        {
            "data": {"normalization": "checkpoint"},
            "export": {"int8": True, "int8_operators": ["Conv", "Gemm"], "max_int8_loss": 1.0},
        }
    )
    change({"model": {"name": str(path.relative_to(project)), "pretrained": True}, "training": {"num_epochs": 2}})
    for stage in (train, evaluate, export):  # the last one refuses what disagrees
        stage.main()
    exported = read(project / "metrics/export/metrics.json")
    assert exported["onnx_agreement"] == exported["hf_agreement"] == 1 and "int8_accuracy" in exported
    config_file = read(project / "models/export/hf/config.json")
    assert config_file["label_names"] == list("0123456789") and "pretrained_cfg" not in config_file
    assert "models/pretrained/timm" in (project / "models/export/hf/README.md").read_text()


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_pretrained_model_goes_from_training_to_export(project, change, kind):
    path = hub_folder(project / "models/pretrained" / kind, kind, weights="safetensors")
    change({"model": {"name": str(path.relative_to(project)), "pretrained": True}, "training": {"num_epochs": 1}})
    change({"data": {"normalization": "none"}, "training": {"resolution_schedule": None, "batch_norm_images": None}})
    for stage in (train, evaluate, export):  # the last one refuses what disagrees
        stage.main()
    exported = read(project / "metrics/export/metrics.json")
    assert exported["onnx_agreement"] == exported["hf_agreement"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "scheduler": "cosine", "warmup_fraction": 0.2},
        {"optimizer": "muon", "precision": "bf16", "accumulate_batches": 2},
        {
            "optimizer": "adam",
            "scheduler": "none",
            "gradient_clip": 1.0,
            "label_smoothing": 0.1,
            "fast_mode": False,
            "adam_beta2": 0.98,
            "decay_norms_and_biases": False,
            "resolution_schedule": None,
            "batch_norm_images": None,
        },
    ],
)
def test_every_setting_trains(project, change, settings):
    change({"training": settings | {"num_epochs": 1}})
    train.main()
    assert np.isfinite(series(project, "val_loss")).all()


def test_stages_run_outside_dvc_and_replace_their_outs(project):
    made = [Path("data/shards/train/index.json"), Path("models/checkpoint/model.safetensors")]
    before = [path.stat().st_mtime_ns for path in made]
    prepare.main()
    train.main()
    assert all(path.stat().st_mtime_ns > time for path, time in zip(made, before, strict=True))
    assert not list(project.rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("stage", "broken", "expected"),
    [
        (train, "data/shards/train", "data/shards/train/index.json is missing: run `dvc repro prepare`"),
        (
            evaluate,
            "models/checkpoint",
            "models/checkpoint/SHA256SUMS is missing: run `dvc repro train`",
        ),
        (evaluate, "data/shards/test", "data/shards/test/index.json is missing: run `dvc repro prepare`"),
        (prepare, "params.yaml", "params.yaml is missing"),
    ],
)
def test_a_missing_input_is_one_line_and_exit_code_1(project, stage, broken, expected):
    path = project / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SystemExit) as ended:
        exit_with(stage.main)
    message = str(ended.value)  # which Python prints, before it exits with 1
    assert message.startswith(f"error: {expected}") and "\n" not in message


def test_pretrained_without_the_hub_says_what_works(project, change):
    change({"model": {"name": "apple/mobilevit-small", "revision": "6c86" * 10, "pretrained": True}})
    with pytest.raises(UserError, match=r"model.name = apple/mobilevit-small .*`hf download .* model.pretrained=false"):
        train.main()


def test_a_checkpoint_of_other_classes_is_refused(project):
    path = project / "models/checkpoint/config.json"
    text = path.read_text().replace('"9": "9"', '"9": "nine"')
    path.unlink()
    path.write_text(text)
    (project / "models/checkpoint/SHA256SUMS").unlink()
    files.seal(project / "models/checkpoint")
    with pytest.raises(UserError, match="models/checkpoint has the classes"):
        evaluate.main()
