"""Real servers on 127.0.0.1 for a test: MLflow, PostgreSQL, and moto in place of an S3 store."""

import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.helpers.project import command, wait_for

NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A process that can be started, killed with all its children, and started again on the same port and store."""

    def __init__(self, words: list[str | Path], health: str, log: Path | None = None, **environment: str):
        self.words, self.health, self.log, self.environment = words, health, log, environment
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        """Start it, and wait until it answers."""
        with open(self.log or os.devnull, "ab") as out:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(self.words, stdout=out, stderr=out, env=environment, start_new_session=True)
        wait_for(self._answers, self.process)
        return self.process

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(self.health, timeout=60):
            return True
        return False

    def kill(self) -> None:
        """Kill it and its children, if they still run."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class MlflowServer(Server):
    """MLflow's server on a store of its own; clients need no access to its database or artifacts."""

    def __init__(self, store: str, artifacts: str | Path, **environment: str):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        listen = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        keep = ["--backend-store-uri", store, "--artifacts-destination", artifacts]
        super().__init__(["mlflow", "server", *listen, *keep], f"{self.address}/health", **environment)


class S3(Server):
    """moto's server, which keeps its objects in memory; `log` lists each request."""

    def __init__(self, log: Path):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.access = {**KEYS, "AWS_ENDPOINT_URL": self.address, "MLFLOW_S3_ENDPOINT_URL": self.address}
        super().__init__(["moto_server", "-H", "127.0.0.1", "-p", str(port)], f"{self.address}/moto-api/", log)

    def add_bucket(self, name: str) -> None:
        """Create a bucket; S3 takes any signature here."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT"), timeout=60):
            pass

    def requests(self) -> list[str]:
        """The method and path of each request so far."""
        lines = self.log.read_text().splitlines()
        plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines if "HTTP/1.1" in line]  # without colors
        return [line.split('"')[1].rsplit(" ", 1)[0] for line in plain]


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps off PATH; None if it is not installed."""
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))[::-1]), None)
    return Path(found).parent if found else None


class Postgres:
    """PostgreSQL with one database, as a user who is not root, which it refuses."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.data, self.port = programs, folder / "data", free_port()
        if NOBODY:
            shutil.chown(folder, "nobody", "nogroup")
        self._run("initdb", "--auth=trust", "--username=mlflow", "--encoding=UTF8")
        self.address = f"postgresql://mlflow@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data.parent} -p {self.port}"
        self._run("pg_ctl", "--wait", f"--log={self.data.parent}/log", f"--options={options}", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is what a crash leaves behind."""
        self._run("pg_ctl", "--wait", f"--mode={mode}", "stop", ok=False)

    def _run(self, program: str, *words: str, ok: bool = True) -> None:
        command(self.data.parent, *NOBODY, str(self.programs / program), "-D", str(self.data), *words, ok=ok)
