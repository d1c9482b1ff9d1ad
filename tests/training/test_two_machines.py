"""Two machines, which are two network namespaces with a cable between them, train one model."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from image_classifier.core import files
from tests.helpers.project import HANGS, command, edit_params, wait_for

# Waits for two minutes for a machine that says nothing, and after the first epoch for the file `cut`.
IMPATIENT = """
import time
from datetime import timedelta
from pathlib import Path
from image_classifier.core.entry import exit_with
from image_classifier.training import distributed
from image_classifier.training.trainer import Trainer
from stages import train

train_epoch = Trainer._train_epoch

def held(trainer, epoch):
    while epoch and not Path("cut").exists():
        time.sleep(0.1)
    return train_epoch(trainer, epoch)

Trainer._train_epoch = held
distributed.LOST_AFTER = timedelta(minutes=2)
exit_with(train.main)
"""


class Machine:
    """A network of its own, held open by a process that sleeps."""

    def __init__(self, *words: str):
        self.holder = subprocess.Popen([*words, "sleep", "inf"])
        self.running: list[subprocess.Popen] = []

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_) -> None:
        for process in (*self.running, self.holder):
            process.kill()
            process.wait()

    @property
    def inside(self) -> list[str]:
        """What a command starts with to run there."""
        return ["nsenter", f"--target={self.holder.pid}", "--user", "--net", "--preserve-credentials"]

    def network(self) -> str:
        """What tells its network from others."""
        return os.readlink(f"/proc/{self.holder.pid}/ns/net")

    def ip(self, *words: str) -> None:
        """Change its network."""
        command(Path.cwd(), *self.inside, "ip", *words)


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two machines, 10.0.0.1 and 10.0.0.2."""
    tried = subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True, text=True)
    if tried.returncode or not shutil.which("ip"):
        pytest.skip(f"network namespaces cannot be made here: {tried.stderr.strip() or 'there is no ip'}")
    with ExitStack() as started:
        first = started.enter_context(Machine("unshare", "--map-root-user", "--net"))
        wait_for(lambda: first.network() != os.readlink("/proc/self/ns/net"), first.holder)
        second = started.enter_context(Machine(*first.inside, "unshare", "--net"))
        own = first.network(), os.readlink("/proc/self/ns/net")
        wait_for(lambda: second.network() not in own, second.holder)
        first.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(second.holder.pid))
        for number, machine in enumerate((first, second), 1):
            machine.ip("address", "add", f"10.0.0.{number}/24", "dev", "wire")
            for device in ("lo", "wire"):
                machine.ip("link", "set", device, "up")
        yield [first, second]


def start(machines: list[Machine], folders: list[Path], *program: str) -> list[subprocess.Popen]:
    """Start the line of docs/scaling-out.md on each machine, with its own rank."""
    line = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "10.0.0.1", "--master-port", "29500"]
    for rank, (machine, folder) in enumerate(zip(machines, folders, strict=True)):
        words = [*machine.inside, "torchrun", *line, "--node-rank", str(rank), *program]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "wire"}
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        machine.running.append(subprocess.Popen(words, cwd=folder, env=environment, **out))
    return [machine.running[-1] for machine in machines]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    said = [process.communicate(timeout=HANGS) for process in processes]
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


@pytest.mark.full
def test_a_machine_that_is_cut_off_ends_the_run_and_it_goes_on_to_the_same_bytes(project, machines, tmp_path):
    edit_params(project, {"training": {"num_epochs": 4}})
    shutil.rmtree("models/checkpoint")
    folders = [project, Path(shutil.copytree(project, tmp_path / "other", symlinks=True))]
    stage = ["-m", "stages.train"]
    for code, output, errors in ended(start(machines, folders, *stage)):
        assert code == 0, output + errors
    assert not (folders[1] / "models/checkpoint").exists()  # the first machine writes the outs
    expected = files.sha256("models/checkpoint/model.safetensors")

    shutil.rmtree("models/checkpoint")
    for folder in folders:
        (folder / "stages/impatient.py").write_text(IMPATIENT)
    processes = start(machines, folders, "-m", "stages.impatient")
    wait_for(lambda: list(Path(".resume").glob("*/epoch-*")), processes[0])
    machines[1].ip("link", "set", "wire", "down")
    for folder in folders:
        (folder / "cut").touch()
    for code, _, errors in ended(processes):
        assert code == 1
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert lines == ["error: another process of this training has stopped: see the messages on its machine"], errors
        assert "]: Traceback" not in errors, errors  # of ours; torchrun ends with one of its own
    assert not Path("models/checkpoint").exists()

    machines[1].ip("link", "set", "wire", "up")
    (code, output, errors), _ = ended(start(machines, folders, *stage))
    assert code == 0 and "resuming after epoch" in output, output + errors
    assert files.sha256("models/checkpoint/model.safetensors") == expected
