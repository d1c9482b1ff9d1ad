"""What a user can put right, told in one line."""

import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable

from filelock import Timeout

TRACEBACK = "IMAGE_CLASSIFIER_TRACEBACK"  # in the environment: 1 shows the traceback behind a one-line error


class UserError(Exception):
    """Says what is wrong, where (file, key, value) and what to do; shown without a traceback."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that holds text, or the name of its type where there is none."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    # KeyError and IndexError often hold nothing but the key.
    return (
        f"{type(error).__name__}: {text}" if text and isinstance(error, LookupError) else text or type(error).__name__
    )


def printable(text: object) -> str:
    """A name of a file or a class in one line, whatever is in it: a line break, or bytes that are not UTF-8."""
    whole = str(text).encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in whole)


def run(main: Callable[[], int | None]) -> None:
    """Run a program's `main` and exit with its code, or with 1 and one line on an error of the user's or the disk's."""
    if sys.platform == "win32":
        sys.exit("error: Windows is not supported: run this in WSL 2, the Windows Subsystem for Linux")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what is open is closed
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        if (message := _explain(error)) is None:
            raise
        if os.environ.get(TRACEBACK) == "1":
            _print_whole(error)
        sys.exit(f"error: {message}")


def _explain(error: Exception) -> str | None:
    """The line that a person can act on; None for a bug, whose traceback is what helps."""
    if isinstance(error, Timeout):
        return f"{error.lock_file} is held by another process doing the same: wait for it to end, or stop it"
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{first_line(error)} ({TRACEBACK}=1 shows where)"
    if isinstance(error, sqlite3.OperationalError):
        return f"a database of DVC cannot be used: {first_line(error)}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return "the GPU's memory is full: lower the batch_size of this stage in params.yaml"
    return None


def _print_whole(error: BaseException) -> None:
    """Print the traceback with the errors behind it, which `from None` hides from a one-line message."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__suppress_context__ = False
        behind = behind.__cause__ or behind.__context__
    traceback.print_exception(error)
