"""Kill it, fill the disk, flip a bit, start it twice: the same bytes, or one line that says what is wrong."""

import hashlib
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from ruamel.yaml import YAML

from image_classifier.commands import summary, verify
from image_classifier.commands.predict import Predictor
from image_classifier.core import config, files, runtime
from image_classifier.core.entry import exit_with
from image_classifier.core.errors import UserError
from image_classifier.core.files import SUMS
from image_classifier.images import shards
from image_classifier.images.shards import ShardReader, ShardWriter, _checksum, _write_sealed
from image_classifier.model import numerics
from image_classifier.preparation.write import resume_key
from image_classifier.training import resume
from image_classifier.training.distributed import Group
from image_classifier.training.resume import State
from image_classifier.training.stepper import Stepper
from image_classifier.training.trainer import Trainer
from stages import evaluate, export, prepare, report, train
from tests.helpers.project import AS_A_USER, HANGS, KILLED, ROOT, command, edit_params, new_project, wait_for
from tests.helpers.training import validations

STAGES = {"prepare": 0.6, "train": 3.5, "evaluate": 1.5, "export": 6.0}  # seconds that each works on two fast cores


def outs(folder: Path) -> dict[str, str]:
    """The hash of every out, as DVC noted it."""
    lock = YAML(typ="safe").load(folder / "dvc.lock")
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def splits() -> list[ShardReader]:
    """What train reads."""
    return [ShardReader(f"data/shards/{name}") for name in ("train", "val")]


def running(dvc: int) -> str:
    """What DVC is at: a stage, or work of its own."""
    with suppress(OSError):  # it has just ended
        for child in Path(f"/proc/{dvc}/task/{dvc}/children").read_text().split():
            if found := re.search(rb"stages\.(\w+)", Path(f"/proc/{child}/cmdline").read_bytes()):
                return found[1].decode()
    return "dvc"


@pytest.mark.parametrize("seed", [0, *[pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 5)]])
def test_kill_9_in_every_stage_changes_no_byte(trained, tmp_path, seed):
    project, moments, hit = new_project(tmp_path / "project"), random.Random(seed), set()
    for stage, lasts in STAGES.items():
        pipeline = subprocess.Popen(
            ["dvc", "repro"],
            cwd=project,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert any(line.startswith(f"{stage}: ") for line in pipeline.stdout)  # reads until the stage says it has begun
        time.sleep(moments.uniform(0, lasts))  # somewhere in it; where it was, the summary says
        if pipeline.poll() is None:
            KILLED[at := running(pipeline.pid)] += 1
            hit.add(at)
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(pipeline.pid, signal.SIGKILL)  # DVC and its stage
        pipeline.communicate()
    assert hit & STAGES.keys()
    command(project, "dvc", "repro")
    assert outs(project) == outs(trained)
    assert not list(project.rglob("*.unfinished"))
    assert command(project, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("image-classifier").experiment_id])
    assert {run.info.status for run in found} <= {"FINISHED", "KILLED"}
    assert any("onnx_agreement" in run.data.metrics for run in found if run.info.status == "FINISHED")


@pytest.mark.full
def test_a_stage_that_a_killed_dvc_left_running_keeps_the_next_one_out(tmp_path):
    project = new_project(tmp_path / "project")
    edit_params(project, {"training": {"num_epochs": 30}})
    pipeline = subprocess.Popen(["dvc", "repro"], cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(project.glob(".resume/*/epoch-*.pt")), pipeline)
    (stage,) = map(int, Path(f"/proc/{pipeline.pid}/task/{pipeline.pid}/children").read_text().split())
    os.kill(stage, signal.SIGSTOP)  # it holds its lock however long the next line takes
    pipeline.kill()  # DVC alone
    pipeline.wait()
    refused = command(project, "dvc", "repro", ok=False)
    os.kill(stage, signal.SIGCONT)
    assert refused.returncode != 0
    assert "error: .resume/train.lock is held by another process doing the same" in refused.stderr
    with FileLock(project / ".resume/train.lock", timeout=HANGS):  # until the one left running has ended
        pass
    command(project, "dvc", "repro")


@pytest.mark.full
def test_a_temp_run_makes_the_same_bytes(project, trained):
    command(project, "dvc", "exp", "run", "--temp", "--force", "-n", "again")
    command(project, "dvc", "exp", "apply", "again")
    assert outs(project) == outs(trained)


def test_a_stage_left_running_keeps_a_second_one_out(project):
    for name, stage in (("prepare", prepare), ("train", train), ("evaluate", evaluate), ("export", export)):
        with FileLock(f".resume/{name}.lock"), pytest.raises(Timeout):
            stage.main()
    with FileLock(".resume/prepare.lock"):
        result = command(project, "python", "-m", "stages.prepare", ok=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: .resume/prepare.lock is held by another process")


def test_a_twin_in_another_folder_waits_for_its_turn(project, monkeypatch, tmp_path):
    """As two queued experiments do that differ in nothing but their export."""
    runtime.configure(2)
    key = resume.fingerprint(config.load(), numerics.resolve("cpu", "fp32"), *splits())
    monkeypatch.setenv("DVC_ROOT", str(project))
    twin = shutil.copytree(project, tmp_path / "twin", symlinks=True)
    shutil.rmtree(twin / "models/checkpoint")
    state = State(key)
    with state.lock:
        (note := state.folder / "mlflow-run").write_text("of the other one")
        words = [sys.executable, "-u", "-m", "stages.train"]
        process = subprocess.Popen(words, cwd=twin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert any(line.startswith("train: waiting for another run") for line in process.stdout)
    rest = process.stdout.read()
    assert process.wait() == 0, rest
    assert (twin / "models/checkpoint/model.safetensors").is_file()
    assert note.read_text() != "of the other one"  # whose MLflow run is finished


def test_a_twin_of_several_processes_does_not_keep_them_waiting(project):
    state, other = State("0" * 32), State("0" * 32)
    other.lock.timeout = 0
    with state.lock, pytest.raises(Timeout):
        other.take(Group(count=2))


def held_at_its_params(project: Path, stage: str) -> tuple[subprocess.Popen, str]:
    """A stage that has its lock and waits for params.yaml, which has become a pipe; and what params.yaml held."""
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").unlink()
    os.mkfifo(project / "params.yaml")
    words = [sys.executable, "-u", "-m", f"stages.{stage}"]
    process = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith(f"{stage}: ")
    return process, params


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_kinder_kill_end_in_one_line(project, number):
    process, _ = held_at_its_params(project, "prepare")
    process.send_signal(number)
    _, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, errors) == (1, "interrupted\n")


def test_prepare_goes_on_after_the_shards_already_finished(project, trained, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 64)
    shutil.rmtree("data/shards")
    prepare.main()
    whole = {path: files.sha256(path) for path in Path("data/shards").rglob("*.*")}
    shutil.rmtree("data/shards")
    flush, flushed = ShardWriter._flush, []

    def dies(self):
        flush(self)
        flushed.append(self.folder.name)
        if len(flushed) in (3, 11):  # in test, and in train
            raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "_flush", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare.main()
        assert not [path for path in Path("data/shards").iterdir() if not path.name.startswith(".")]
    prepare.main()
    assert len(flushed) == sum(path.suffix == ".safetensors" for path in whole)  # none was made twice
    assert {path: files.sha256(path) for path in Path("data/shards").rglob("*.*")} == whole


def test_prepare_starts_afresh_when_what_a_link_leads_to_has_changed(project):
    data = config.load().data.model_copy(update={"source": "data/raw/pets"})
    for name in ("data/raw/pets/cat", "elsewhere"):
        Path(name).mkdir(parents=True)
    Path("elsewhere/1.png").write_bytes(b"one")
    Path("data/raw/pets/cat/1.png").symlink_to(Path("elsewhere/1.png").resolve())
    before = resume_key(data, seed=0)
    assert resume_key(data, seed=0) == before
    Path("elsewhere/1.png").write_bytes(b"another")
    assert resume_key(data, seed=0) != before


def test_train_starts_afresh_where_last_digits_would_differ(project, monkeypatch):
    def key() -> str:
        return resume.fingerprint(config.load(), numerics.resolve("cpu", "fp32"), *splits())

    before = key()
    assert key() == before
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert key() != before


def test_prepare_of_another_input_starts_afresh(project, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 64)
    close = ShardWriter.close
    monkeypatch.setattr(ShardWriter, "close", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.main()
    assert Path("data/shards/.test.unfinished/.notes.json").is_file()
    monkeypatch.setattr(ShardWriter, "close", close)
    edit_params(project, {"seed": 1})
    prepare.main()
    seeded = files.sha256("data/shards/test/index.json")
    shutil.rmtree("data/shards")
    prepare.main()
    assert files.sha256("data/shards/test/index.json") == seeded


@pytest.mark.parametrize(
    ("stage", "full_for", "out"),
    [
        (prepare, "a shard", "data/shards"),
        (train, "the resume state", "models/checkpoint"),
        (train, "the model", "models/checkpoint"),
        (evaluate, "the metrics", "metrics/evaluate"),
        (export, "ONNX", "models/export"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(project, monkeypatch, tmp_path, stage, full_for, out):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))  # an old one may hold a database above the limit
    if full_for == "the model":
        monkeypatch.setattr(State, "save", lambda *_: None)  # which is larger
    shutil.rmtree(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 20_000 if stage is evaluate else 300_000  # bytes a file: enough for the databases, where one is written
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(SystemExit) as ended:
            exit_with(stage.main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(ended.value)
    assert message.startswith("error: ") and "\n" not in message
    assert "cannot be written: " in message and "File too large" in message
    assert not Path(out).exists() or not [path for path in Path(out).iterdir() if not path.name.startswith(".")]
    assert not [path for path in Path(".").rglob("*.unfinished") if path.parent != Path("data/shards")]


def test_a_read_only_folder_is_one_line(project):
    shutil.rmtree("metrics/evaluate")
    Path("metrics").chmod(0o555)
    result = command(project, *AS_A_USER, sys.executable, "-m", "stages.evaluate", ok=False)
    Path("metrics").chmod(0o755)
    assert result.returncode == 1
    assert result.stderr.startswith("error: metrics/evaluate cannot be written: [Errno 13] Permission denied")


def damage(path: Path, how: str) -> None:
    """Flip a bit in the middle of a file or cut its end off; the file may be a link into DVC's cache."""
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("data/shards/train/shard-00000.safetensors", train),
        ("data/shards/val/index.json", train),
        ("data/shards/test/shard-00000.safetensors", evaluate),
        ("models/checkpoint/model.safetensors", evaluate),
        ("models/checkpoint/config.json", export),
        ("models/checkpoint/preprocessor_config.json", export),
        ("models/checkpoint/SHA256SUMS", export),
    ],
)
def test_damage_is_found_before_use_and_named(project, path, stage, how):
    damage(project / path, how)
    with pytest.raises(UserError) as caught:
        stage.main()
    message = str(caught.value)
    named = Path(path).name if path.endswith("SUMS") is False else "missing or damaged"
    assert named in message and "run `dvc repro" in message and "\n" not in message


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_export_is_found_before_use(project, how):
    damage(project / "models/export/model.onnx", how)
    with pytest.raises(UserError, match=r"model\.onnx (missing or damaged|cannot be loaded).*run `dvc repro export`"):
        Predictor.from_onnx()


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_resume_state_is_named_and_costs_no_byte(project, trained, monkeypatch, capsys, how):
    calls = validations(monkeypatch, dies_in=2)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    (kept,) = Path(".resume").glob("*/epoch-*.pt")
    damage(kept, how)
    train.main()
    assert f"{kept.name} is damaged" in capsys.readouterr().out
    assert len(calls) == 5  # all three epochs again
    assert files.sha256("models/checkpoint/model.safetensors") == files.sha256(
        trained / "models/checkpoint/model.safetensors"
    )


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_pickle_is_never_executed_wherever_it_lies(project, monkeypatch):
    """With the checksums that belong to it: an attacker has them too."""
    evil = pickle.dumps({"images": Malicious()})
    monkeypatch.setattr(Trainer, "validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    key = resume.fingerprint(config.load(), numerics.resolve("cpu", "fp32"), *splits())
    state = Path(".resume") / key / f"epoch-00001-{hashlib.sha256(evil).hexdigest()}.pt"
    state.parent.mkdir()
    state.write_bytes(evil)
    with pytest.raises(UserError, match="holds no state of a training"):
        train.main()

    shard = Path("data/shards/train/shard-00000.safetensors")
    index = files.read_json(shard.with_name("index.json"), "")
    del index["checksum"]
    index["shards"][0]["sha256"] = hashlib.sha256(evil).hexdigest()
    for path in (shard, shard.with_name("index.json")):
        path.unlink()  # a link into DVC's cache
    shard.write_bytes(evil)
    _write_sealed(shard.with_name("index.json"), index)
    with pytest.raises(UserError, match=r"shard-00000.safetensors is not a shard"):
        train.main()

    folder = Path("models/checkpoint")
    for name in ("model.safetensors", SUMS):
        (folder / name).unlink()
    (folder / "model.safetensors").write_bytes(evil)
    files.seal(folder)
    with pytest.raises(UserError, match="models/checkpoint cannot be loaded"):
        evaluate.main()
    assert not Path("executed").exists()


def test_a_stage_started_twice_runs_once(project):
    first, params = held_at_its_params(project, "evaluate")
    second = command(project, sys.executable, "-m", "stages.evaluate", ok=False)
    assert second.returncode == 1
    assert second.stderr.startswith("error: .resume/evaluate.lock is held by another process")
    (project / "params.yaml").write_text(params)
    first.communicate(timeout=HANGS)
    assert first.returncode == 0


@pytest.mark.parametrize(("bad", "told"), [(13, 2), (25, 13)])  # of 26 steps; the next one's loss shows it
def test_a_loss_that_is_no_number_leaves_the_last_good_state(project, monkeypatch, bad, told):
    step, steps = Stepper.step, iter(range(1000))

    def diverges(self, *arguments, **words):
        if next(steps) == bad:
            for group in self.optimizer.param_groups:
                group["lr"] = float("nan")
        return step(self, *arguments, **words)

    monkeypatch.setattr(Stepper, "step", diverges)
    with pytest.raises(UserError, match=rf"loss is NaN or infinite at epoch 2, step {told} of 13, learning rate"):
        train.main()
    (kept,) = Path(".resume").glob("*/epoch-*.pt")
    assert kept.name.startswith("epoch-00001-")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_is_full_is_told_a_batch_size(project, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(Stepper, "step", full)
    with pytest.raises(UserError, match="full at training.batch_size = 16: try 8"):
        train.main()


def test_a_shard_that_an_index_names_lies_beside_it(project):
    shutil.move("data/shards/val/shard-00000.safetensors", "elsewhere.safetensors")
    index = files.read_json("data/shards/val/index.json", "")
    index["shards"][0]["file"] = "../../../elsewhere.safetensors"
    del index["checksum"]
    Path("data/shards/val/index.json").unlink()
    files.write_json("data/shards/val/index.json", index | {"checksum": _checksum(index)})
    with pytest.raises(UserError, match="elsewhere.safetensors is missing"):
        ShardReader("data/shards/val")


def test_verify_names_the_first_out_and_file_that_differ(trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other", symlinks=True)
    assert verify.difference(verify.outs(trained), verify.outs(other)) is None
    path = other / "models/export/hf/config.json"
    lock = (other / "dvc.lock").read_text()
    (other / "dvc.lock").write_text(lock.replace(outs(trained)["models/export"], "0" * 32))
    damage(path, "flipped")
    assert verify.difference(verify.outs(trained), verify.outs(other)) == ("export", "models/export")
    found = verify.file_that_differs(trained / "models/export", other / "models/export")
    assert found == trained / "models/export/hf/config.json"


@pytest.mark.parametrize(
    ("name", "utf8"), [("data/raw/cat", "0"), ("data/raw/Café", "1"), ("models/pretrained/Café", "1")]
)
def test_verify_reads_names_that_are_not_ascii(project, monkeypatch, capsys, name, utf8):
    """Python could not read them in the ASCII locale of the second run."""
    Path(name).mkdir(parents=True)
    seen = []
    monkeypatch.setattr(verify, "rerun", lambda _, surroundings: seen.append(surroundings) or project)
    assert verify.main(record=False, against=None) == 0
    assert "and identical to the committed dvc.lock" in capsys.readouterr().out
    assert seen == [{}, verify.ELSEWHERE | {"PYTHONUTF8": utf8}]


def test_verify_where_git_cannot_clone_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    command(tmp_path, "git", "init", "-q")
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(UserError, match="git could not clone this folder"):
        verify.main(record=False, against=None)


def test_an_environment_of_another_folder_is_told(tmp_path):
    """As after `mv`, when its programs are not found, or after `cp -r`, when they run the other folder's code."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/dvc").write_text("#!/elsewhere/.venv/bin/python\n")
    (tmp_path / ".venv/installed").touch()
    found = command(tmp_path, "make", "setup", ok=False)
    assert found.returncode and "error: .venv was built in another folder or is incomplete: remove it" in found.stderr


def test_verify_needs_a_committed_lock(project):
    command(project, "git", "rm", "-q", "dvc.lock")
    command(project, "git", "commit", "-qm", "without")
    with pytest.raises(UserError, match="dvc.lock is not committed"):
        verify.main(record=False, against=None)


def test_summary_waits_for_the_end_of_a_training(project, capsys):
    summary.main()
    path = Path("metrics/train/metrics.json")
    values = files.read_json(path, "")
    path.unlink()
    files.write_json(path, {name: value for name, value in values.items() if name != "best_epoch"})
    capsys.readouterr()
    with pytest.raises(UserError, match=r"metrics/train/metrics.json is of a training that has not ended"):
        summary.main()
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match=r"metrics/train/metrics.json is of a training that has not ended"):
        report.main()


def test_verify_says_what_differs_from_the_machine_of_the_committed_bytes(project, trained, monkeypatch, capsys):
    """The tiny pipeline stands for both reruns: alike, and unlike the committed lock."""
    first = next(iter(verify.outs(project).values()))
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace(first, "0" * 32))
    command(project, "git", "commit", "-qam", "other bytes")
    monkeypatch.setattr(verify, "rerun", lambda *_: trained)
    files.write_json(verify.ENVIRONMENT, verify.environment(config.load()) | {"version.torch": "1.0.0"})
    assert verify.main(record=True, against=None) == 0
    printed = capsys.readouterr().out
    assert "other bytes, first in prepare: data/shards" in printed
    assert f"what differs: version.torch: 1.0.0 there, {version('torch')} here\n" in printed
    assert files.read_json(verify.ENVIRONMENT, "")["version.torch"] == "1.0.0"  # recorded for the same bytes alone


def test_verify_says_that_other_images_lie_here(project, trained, monkeypatch, capsys):
    lock = Path("dvc.lock").read_text().replace(verify.inputs(project)["data/raw"], "0" * 32, 1)  # prepare's
    Path("dvc.lock").write_text(lock.replace(outs(project)["models/checkpoint"], "1" * 32))
    command(project, "git", "commit", "-qam", "of other images")
    monkeypatch.setattr(verify, "rerun", lambda *_: trained)
    assert verify.main(record=False, against=None) == 0
    assert "other content here than dvc.lock was committed with: data/raw\n" in capsys.readouterr().out
