"""What a disk may hold after a power cut, from the system calls of a program under strace."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random

SECTOR = 512  # bytes that a disk writes whole
NAMING = ("openat", "unlink")  # what creates and deletes
CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink"


@dataclass
class Call:
    """A system call on a file: its name, its bytes, and where they go or, for ftruncate, the length."""

    name: str
    path: str
    data: bytes = b""
    at: int = 0


def traced(folder: Path, words: list[str], said: Path) -> list[Call]:
    """Run a Python command under strace, its output in `said`; every call that may change a file, in order."""
    log = folder / "strace.log"
    strace = ["strace", "-f", "-y", "-xx", "-qq", "-s", str(2**20), "-e", "signal=none", "-e", f"trace={CALLS}"]
    with open(said, "w") as out:
        subprocess.run([*strace, "-o", log, sys.executable, *words], cwd=folder, stdout=out, check=True)
    text = re.compile(r'(\w+)\((?:(?:AT_FDCWD)?\d*<([^>]*)>)?(?:, )?(?:"([^"]*)")?(?:, )?([^()]*)\) += \d+')
    found, begun = [], {}
    for line in log.read_text().splitlines():
        thread, line = line.split(maxsplit=1)
        if line.endswith("<unfinished ...>"):  # another thread's call is between its beginning and its end
            begun[thread] = line.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", line):
            line = begun.pop(thread) + line[resumed.end() :]
        if not (match := text.search(line)):  # it failed
            continue
        name, path, data, rest = match.groups()
        numbers = [int(number) for number in re.findall(r"\d+", rest)]
        if name in ("openat", "unlink"):
            if name == "unlink" or "O_CREAT" in rest:
                found.append(Call(name, _bytes(data).decode()))
        elif path:
            at = numbers[-1] if name in ("pwrite64", "ftruncate") else 0
            found.append(Call(name, _bytes(path).decode(), _bytes(data or ""), at))
    return found


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace(r"\x", ""))


class Disk:
    """Files of which the last writes, those after a file's last sync, may be lost, kept or torn, in any order.

    Files are created and deleted in order, as journaling file systems do, and any sync makes that last.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files  # what is on it for good
        self.names = set(files)  # what the program sees there
        self.pending: list[Call] = []

    def apply(self, call: Call) -> None:
        """Take a call; one that syncs makes what came before it last."""
        if call.name in ("fsync", "fdatasync"):
            waiting: list[Call] = []
            for earlier in self.pending:
                if earlier.name in NAMING:  # what was written under that name before is in no file any more
                    waiting = [written for written in waiting if written.path != earlier.path]
                if earlier.name in NAMING or earlier.path == call.path:
                    self._do(earlier)
                else:
                    waiting.append(earlier)
            self.pending = waiting
        elif call.name != "write" and not (call.name == "openat" and call.path in self.names):
            self.pending.append(call)
            (self.names.discard if call.name == "unlink" else self.names.add)(call.path)

    def after_a_cut(self, random: Random) -> dict[str, bytes]:
        """One of the states that a power cut now may leave."""
        left, unseen = Disk(dict(self.files)), set()
        named = random.randint(0, sum(call.name in NAMING for call in self.pending))
        for call in self.pending:
            if call.name in NAMING:
                named -= 1
                if named >= 0:
                    left._do(call)
                else:
                    unseen.add(call.path)  # what is written now goes into a file that nobody will find
            elif call.path not in unseen and random.random() < 0.5:
                sectors = len(call.data) // SECTOR
                torn = sectors > 1 and random.random() < 0.25
                data = call.data[: SECTOR * random.randrange(1, sectors)] if torn else call.data
                left._do(Call(call.name, call.path, data, call.at))
        return left.files

    def _do(self, call: Call) -> None:
        before = self.files.get(call.path, b"")
        if call.name == "unlink":
            self.files.pop(call.path, None)
        elif call.name == "openat":
            self.files[call.path] = b""
        elif call.name == "ftruncate":
            self.files[call.path] = before[: call.at].ljust(call.at, b"\0")
        elif call.name == "pwrite64":
            end = call.at + len(call.data)
            self.files[call.path] = before[: call.at].ljust(call.at, b"\0") + call.data + before[end:]
