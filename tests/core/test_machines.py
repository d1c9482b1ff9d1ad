"""It works on the machines that people have: without root, in containers, on other processors, under any load."""

import os
import shutil
import stat
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageClassification

from image_classifier.core import config, files, provenance, runtime
from image_classifier.core.entry import exit_with
from image_classifier.core.errors import UserError, first_line, is_out_of_memory
from image_classifier.export import formats
from image_classifier.images.resize import Resize
from image_classifier.model import checkpoint
from image_classifier.preparation import write
from image_classifier.preparation.write import ROWS_READ, TASK_SIZE, decoded
from image_classifier.training.build import build_network
from image_classifier.training.distributed import Group
from image_classifier.training.resume import State
from image_classifier.training.sizes import smallest_batches
from stages import evaluate, prepare, train
from tests.helpers.project import AS_A_USER, DEFAULTS, ROOT, command
from tests.training.test_waiting import EVERYTHING


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------ other processors


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2")
def test_a_portable_training_is_the_same_whatever_the_libraries_would_choose(project, change):
    change({"portable": True, "num_threads": 1, "training": {"device": "cpu", "precision": "fp32"}})
    found = set()
    for choice in ({}, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}):
        command(project, "python", "-m", "stages.train", **choice)
        command(project, "python", "-m", "stages.evaluate", **choice)
        found.add(
            (files.sha256("models/checkpoint/model.safetensors"), files.sha256("metrics/evaluate/predictions.csv"))
        )
    assert len(found) == 1


@pytest.mark.full
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2")
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs QEMU's user mode emulation: qemu-user")
@pytest.mark.parametrize("processor", ["Haswell", "EPYC-Milan"])  # Intel's, and AMD's
def test_a_portable_training_is_the_same_on_an_emulated_processor(processor, project, change):
    """QEMU also answers what the libraries ask the processor about itself, by which they choose their kernels."""
    emulated = ["qemu-x86_64", "-cpu", processor, sys.executable]
    kernels = command(project, *emulated, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())").stdout
    if kernels != "AVX2\n":
        pytest.skip("this QEMU does not emulate AVX2; 7.2 and later do")
    settings = {"device": "cpu", "precision": "fp32", "fast_mode": False, "augmentation": EVERYTHING}
    settings |= {"gradient_clip": 1.0, "ema_decay": 0.9, "accumulate_batches": 2, "label_smoothing": 0.1}
    settings |= {"class_weights": True, "optimizer": "muon"}  # which has AdamW for norms, biases and the head
    change({"portable": True, "num_threads": 1, "training": settings})
    found = []
    for python in (["python"], emulated):
        command(project, *python, "-m", "stages.train")
        command(project, *python, "-m", "stages.evaluate")
        outs = "models/checkpoint/model.safetensors", "metrics/evaluate/predictions.csv"
        found.append([files.sha256(path) for path in outs])
    assert found[0] == found[1]


def test_a_portable_training_is_refused_where_torch_computes_otherwise(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(UserError, match="portable = true, but torch computes with AVX512 here instead of AVX2"):
        runtime.configure(1, portable=True)
    runtime.configure(1)


# ---------------------------------------------------------------- without root


def test_export_takes_a_checkpoint_that_is_read_only(project):
    """As DVC links it from its cache."""
    for path in Path("models/checkpoint").iterdir():
        path.chmod(0o444)
    shutil.rmtree("models/export")
    command(project, *AS_A_USER, sys.executable, "-m", "stages.export")
    assert mode(Path("models/export/hf/config.json")) == mode(Path("models/export/model.onnx"))


def test_every_file_of_an_out_has_the_permissions_of_a_new_file(project, monkeypatch):
    umask = os.umask(0o027)
    try:
        shutil.rmtree("models/checkpoint")
        train.main()
        assert {mode(path) for path in Path("models/checkpoint").iterdir()} == {0o640}
    finally:
        os.umask(umask)


def test_whoever_uses_a_checkout_can_take_its_locks(project):
    umask = os.umask(0o077)
    try:
        evaluate.main()
    finally:
        os.umask(umask)
    assert mode(Path(".resume/evaluate.lock")) == mode(Path("mlflow.db.lock")) == 0o666


# ---------------------------------------------------------------- containers and hosts


def group(root: Path, membership: str, **limits: str) -> Path:
    """A /proc and /sys whose process belongs to these control groups; `limits` are files of /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # version 2, as a container sees it
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),  # the group above has the quota
        ("0::/not/there\n", {"cpu.max": "500000 100000"}, 5),
        ("0::/../outside\n", {"cpu.max": "500000 100000"}, 5),
        ("4:cpu,cpuacct:/\n3:memory:/\n", {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ("4:cpu:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, 64),
        ("4:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
        ("", {}, 64),
    ],
)
def test_a_containers_quota_of_cpus_counts(tmp_path, monkeypatch, membership, limits, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert runtime.cpus(group(tmp_path, membership, **limits)) == expected


def test_the_cpus_that_a_process_may_run_on_count(monkeypatch):
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    os.sched_setaffinity(0, one)
    try:
        assert runtime.cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_every_count_of_cpus_comes_from_one_place():
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "stages").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        if path.name != "runtime.py":
            assert "sched_getaffinity" not in path.read_text() and "cpu_count" not in path.read_text(), path


def test_macos_which_lacks_some_calls_and_files_runs_the_stages(project, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    processor = provenance.processor
    monkeypatch.setattr(provenance, "processor", lambda: processor(project / "no-proc"))
    assert runtime.cpus(project / "no-proc") == 3 and provenance.processor()
    for stage in (prepare, train, evaluate):
        stage.main()


def test_windows_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^error: Windows is not supported: run this in WSL 2"):
        exit_with(pytest.fail)


ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes {}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {}
CPU part\t: {}
"""
X86 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 {}\n"


def test_processors_that_may_round_differently_have_different_names(tmp_path):
    texts = [ARM.format("asimdhp", "0x3", part) for part in ("0xd0c", "0xd40", "0xd4f")]  # Graviton 2, 3, 4
    texts += [ARM.format("asimdhp", "0x1", "0xd0c"), ARM.format("asimdhp sve", "0x3", "0xd0c")]
    texts += [X86.format(""), X86.format("avx512f"), X86.format("avx512f avx512_bf16")]
    texts += [X86.format("avx512f").replace("17", "1"), X86.format("avx512f").replace("25", "26")]
    names = set()
    (tmp_path / "proc").mkdir()
    for text in texts:
        (tmp_path / "proc/cpuinfo").write_text(text + "\n" + text)
        names.add(provenance.processor(tmp_path))
    assert len(names) == len(texts)


class Watched:
    """Rows whose image files count as in memory from when they are read until they are marked as done."""

    def __init__(self, count: int, size: int):
        self.rows = datasets.Dataset.from_dict(
            {
                "image": [{"bytes": bytes([number % 256]) * size, "path": None} for number in range(count)],
                "label": [0] * count,
                "row": [f"row {number}" for number in range(count)],
            }
        )
        self.size, self.held, self.most = size, 0, 0

    def iter(self, batch_size: int):
        for part in self.rows.iter(batch_size):
            self.held += self.size * len(part["row"])
            self.most = max(self.most, self.held)
            yield part


@pytest.mark.parametrize("cpus", [1, 16, 64])
def test_what_prepare_holds_is_bounded_in_bytes_whatever_the_number_of_cpus(monkeypatch, cpus):
    monkeypatch.setattr(runtime, "cpus", lambda: cpus)
    monkeypatch.setattr(write, "BYTES_AHEAD", 2**23)
    rows = Watched(count=600, size=150_000)
    found = []
    for image in decoded(rows, Resize(32, "stretch")):
        assert (image.pixels, image.label) == (None, 0) and "not an image" in image.error
        found.append(image.where)
        rows.held -= rows.size
    assert found == [f"row {number}" for number in range(600)]
    # What is read but not yet in a task, and the task that a reader takes its rows from, come on top.
    assert rows.most < 2**23 + (ROWS_READ + TASK_SIZE) * rows.size


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n  \n first \nsecond"), "first"),
        (ValueError(), "ValueError"),
        (ValueError("  \n"), "ValueError"),
        (KeyError("name"), "KeyError: 'name'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected


def test_an_error_without_text_is_one_line_too(project, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForImageClassification, "from_pretrained", fails)
        with pytest.raises(UserError, match=r"models/checkpoint cannot be loaded \(RuntimeError\)"):
            checkpoint.load("models/checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", fails)
        with pytest.raises(UserError, match=r"model.onnx cannot be loaded \(RuntimeError\)"):
            formats.session("models/export/model.onnx")
    state = State("key")
    state.save(1, {"epoch": 1})
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(UserError, match=r"holds no state of a training \(RuntimeError\)"):
        state.load(Group())


def test_only_a_failed_write_is_blamed_on_its_target(tmp_path):
    out = tmp_path / "out"
    for error in (
        FileNotFoundError(2, "No such file or directory", str(tmp_path / "elsewhere")),
        PermissionError(13, "Permission denied", "/etc/shadow"),
        OSError(5, "Input/output error"),  # of a read: the system names no file
        SafetensorError("Error while deserializing header: header too large"),
    ):
        with pytest.raises(type(error)), files.atomic(out):
            raise error
    for error in (
        OSError(28, "No space left on device"),
        OSError(27, "File too large"),
        PermissionError(13, "Permission denied", str(tmp_path / ".out.unfinished/part")),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        with pytest.raises(UserError, match=rf"^{out} cannot be written: "), files.atomic(out):
            raise error
    assert not deque(tmp_path.iterdir())


def test_a_target_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out cannot be written: "), files.atomic(tmp_path / "file/out"):
        pytest.fail("nothing can be written here")


def test_a_name_that_the_terminal_cannot_show_is_no_error(project):
    told = "from image_classifier.core.entry import exit_with; exit_with(lambda: print('\\u732b'))"
    result = command(project, "env", "PYTHONIOENCODING=ascii", "python", "-c", told)
    assert result.stdout == "\\u732b\n"


def test_a_file_does_not_take_a_folders_place(tmp_path):
    kept = tmp_path / "out.csv/kept"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(UserError, match="out.csv cannot be written: .*Is a dir"), files.atomic(kept.parent) as out:
        out.touch()
    assert [*tmp_path.rglob("*")] == [kept.parent, kept]


def test_an_unexpected_error_of_the_system_says_how_to_see_where(monkeypatch, capsys):
    def fails():
        raise OSError(5, "Input/output error")

    with pytest.raises(SystemExit) as ended:
        exit_with(fails)
    assert str(ended.value) == "error: [Errno 5] Input/output error (IMAGE_CLASSIFIER_TRACEBACK=1 shows where)"
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("IMAGE_CLASSIFIER_TRACEBACK", "1")
    with pytest.raises(SystemExit, match=r"error: \[Errno 5\]"):
        exit_with(fails)
    assert "in fails" in capsys.readouterr().err


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_memory_that_is_full_is_one_line_in_every_stage(allocate):
    with pytest.raises(SystemExit, match=r"^error: memory is full \(.* allocate .*\): lower the batch size, or"):
        exit_with(lambda: allocate(10**15))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_full_memory_of_a_gpu_is_told_in_all_its_spellings(error, expected):
    assert is_out_of_memory(error) is expected


def test_output_that_nobody_reads_any_more_is_no_error():
    words = [sys.executable, "-c", "from image_classifier.core.entry import exit_with; exit_with(lambda: print('x'))"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT / "src")
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_the_traceback_shows_what_a_one_line_error_hides(monkeypatch, capsys):
    def fails():
        try:
            raise ValueError("the cause")
        except ValueError:
            raise UserError("the line") from None

    monkeypatch.setenv("IMAGE_CLASSIFIER_TRACEBACK", "1")
    with pytest.raises(SystemExit, match="error: the line"):
        exit_with(fails)
    assert "ValueError: the cause" in capsys.readouterr().err


def test_a_batch_of_one_image_is_refused_before_training(project, change):
    """At 32 px the last layers of the tiny network see one pixel; at 64 px they see four, which is enough."""
    change({"training": {"batch_size": 1, "resolution_schedule": [64, 32]}})  # the second half of the epochs
    with pytest.raises(UserError, match=r"batch_size leaves a batch of one image, on which .* train at 32 px"):
        train.main()
    assert not list(Path(".resume").glob("*/epoch-*"))
    change({"training": {"batch_size": 2, "batch_norm_images": 101, "num_epochs": 1, "resolution_schedule": None}})
    train.main()


def test_a_size_that_a_network_cannot_take_is_refused_before_training(project, change, monkeypatch):
    def fails(*_, pixel_values, **__):
        if pixel_values.shape[-1] == 64:
            raise RuntimeError("The size of tensor a (16) must match the size of tensor b (196)\nat ...")
        return SimpleNamespace(logits=torch.zeros(len(pixel_values), 10))

    monkeypatch.setattr(train, "build_network", lambda *_: network)
    network = AutoModelForImageClassification.from_pretrained("models/checkpoint")
    network.forward = fails
    with pytest.raises(UserError, match=r"cannot be trained at 64 px \(The size of tensor a \(16\) must match"):
        train.main()
    assert config.load().training.resolution_schedule == [32, 64]


def test_the_full_size_is_tried_even_if_only_validation_uses_it():
    training = config.load(DEFAULTS).training
    training = training.model_copy(update={"batch_norm_images": None, "resolution_schedule": [32], "batch_size": 8})
    assert smallest_batches(training, count=100, full_size=160) == {32: 2, 160: 2}


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("torch.load", lambda: State("key").load(Group())),
        ("transformers.AutoModelForImageClassification.from_pretrained", lambda: checkpoint.load("models/checkpoint")),
        ("onnxruntime.InferenceSession", lambda: formats.session("models/export/model.onnx")),
        (
            "image_classifier.training.build._from_scratch",
            lambda: build_network(config.load().model, ["a", "b"], 64, seed=0),
        ),
    ],
)
def test_full_memory_while_loading_is_not_said_of_a_file(trained, monkeypatch, name, load):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes")

    monkeypatch.chdir(trained)
    monkeypatch.setattr(State, "_read", lambda _: b"some")
    monkeypatch.setattr(name, full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load()
