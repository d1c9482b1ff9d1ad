"""Files and folders that appear whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from image_classifier.core.errors import UserError, first_line

SUMS = "SHA256SUMS"  # of a sealed folder, as sha256sum writes and checks it
# What can go wrong with a write to an open file; the error then does not name the file.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def repository() -> Path:
    """The real repository: DVC runs temp and queued experiments in a copy and names it in DVC_ROOT."""
    return Path(os.environ.get("DVC_ROOT", "."))


def lock(path: str | Path, timeout: float = 0) -> FileLock:
    """A lock that whoever uses this checkout can take, not only the user who took it first.

    Raises filelock.Timeout when it is entered: another process held it for `timeout` seconds.
    """
    return FileLock(path, timeout=timeout, mode=0o666)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in bare hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file or folder to be made; rename it into place on success.

    What stood under `path` is replaced, a folder only by a folder. On failure the unfinished work is
    removed and `path` stays as it was. Every file gets the permissions of a new one, whatever its writer chose.

    Raises UserError: `path` cannot be written. Any other error of the caller's work passes unchanged.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with _blamed_on(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(unfinished)
    try:
        try:
            yield unfinished
        except (OSError, SafetensorError) as error:
            if not _is_a_write(error, unfinished):
                raise
            raise _unwritable(path, error) from error
        with _blamed_on(path):
            _replace(unfinished, path)
    finally:
        remove(unfinished)


def check_writable(path: Path) -> None:
    """Raise UserError if a file cannot be written under this name: before hours of work, not after."""
    with _blamed_on(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        (trial := path.with_name(f".{path.name}.unfinished")).touch()
        trial.unlink()


@contextmanager
def _blamed_on(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be written: {first_line(error)}")


def _is_a_write(error: OSError | SafetensorError, unfinished: Path) -> bool:
    """Whether an error in the caller's work comes from writing to `unfinished` rather than from reading something."""
    if not isinstance(error, OSError):  # safetensors' holds the number of the system's error as text
        return any(f"os error {number})" in str(error) for number in FULL)
    named = [Path(name).absolute() for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    if not named:
        return error.errno in FULL
    return any(path.is_relative_to(unfinished.absolute()) for path in named)


@contextmanager
def resumable(path: Path, key: str) -> Iterator[Path]:
    """Like `atomic`, of a folder that stays when the work is cut short: the next run finds it, if `key` is the same.

    Hidden files in it are notes of the work: they go before it gets its final name.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    mark = unfinished / ".key"
    with _blamed_on(path):
        if not mark.is_file() or mark.read_text() != key:
            remove(unfinished)
            unfinished.mkdir(parents=True)
            mark.write_text(key)
    try:
        yield unfinished
    except UserError as error:
        if not isinstance(error.__cause__, OSError):  # not cut short: the same input would end the same way
            remove(unfinished)
        raise
    with _blamed_on(path):
        for note in unfinished.glob(".*"):
            note.unlink()
        _replace(unfinished, path)


def _replace(unfinished: Path, path: Path) -> None:
    os.umask(umask := os.umask(0))  # it can be read only by setting it
    for part in (unfinished, *unfinished.rglob("*")):
        if part.is_file():  # safetensors makes its files for their owner alone
            part.chmod(0o666 & ~umask)
        _to_disk(part)  # or a power cut could leave the name without the content
    if unfinished.is_dir():  # a file takes no folder's place
        remove(path)
    os.replace(unfinished, path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove(path: str | Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys, so that equal values give equal bytes."""
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path, remedy: str) -> Any:
    """Read a JSON file.

    Raises UserError: the file is missing or damaged; `remedy` is what to do then.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def copy(source: Path, target: Path) -> None:
    """Copy what a folder holds, but not its permissions: what DVC links from its cache is read-only."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        to.mkdir() if path.is_dir() else shutil.copyfile(path, to)


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files, not of those in folders below it, beside them."""
    with atomic(folder / SUMS) as unfinished:  # what stands there may be read-only
        unfinished.write_text("".join(_sums(folder)))


def check_seal(folder: Path, remedy: str) -> None:
    """Compare a folder's files with their checksums. Others, such as .DS_Store, are not looked at.

    Raises UserError: some differ or are missing; `remedy` is what to do then.
    """
    written = sums(folder / SUMS, remedy)
    odd = [name for name, sum_ in written.items() if not (folder / name).is_file() or sha256(folder / name) != sum_]
    if odd:
        raise UserError(f"{folder}: {', '.join(sorted(odd))} missing or damaged, going by {SUMS}: {remedy}")


def sums(path: Path, remedy: str) -> dict[str, str]:
    """The SHA-256 of each file that a SHA256SUMS lists, by the file's name.

    Raises UserError: `path` is missing or damaged; `remedy` is what to do then.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    lines = path.read_text(errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line) for line in lines]
    written = {match[2]: match[1] for match in found if match}
    if len(written) != len(lines) or not written:
        raise UserError(f"{path.parent}: {path.name} missing or damaged: {remedy}")
    return written


def _sums(folder: Path) -> list[str]:
    paths = (path for path in sorted(folder.glob("*")) if path.is_file() and path.name != SUMS)
    return [f"{sha256(path)}  {path.name}\n" for path in paths]
