"""How a stage or a command ends: an exit code, one line for an error that a person can fix, a traceback for a bug."""

import io
import os
import select
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable

from filelock import Timeout

from image_classifier.core.errors import TRACEBACK, UserError, first_line, is_out_of_memory

STARTED = time.perf_counter()


def took() -> str:
    """How long this process has run."""
    return f"{time.perf_counter() - STARTED:.0f} s"


def exit_with(main: Callable[[], int | None]) -> None:
    """Run a program's `main` and exit with its code, or with 1 and one line on an error of the user's or the disk's."""
    if sys.platform == "win32":
        sys.exit("error: Windows is not supported: run this in WSL 2, the Windows Subsystem for Linux")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what is open is closed
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no signs for is shown, not an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
            sys.exit(1)
        if (message := _explain(error)) is None:
            raise
        if os.environ.get(TRACEBACK) == "1":
            _print_whole(error)
        sys.exit(f"error: {message}")


def _nobody_reads() -> bool:
    """Whether what reads our output has ended, as `head` does when it has its lines."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


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
    if is_out_of_memory(error):
        return f"memory is full ({first_line(error)}): lower the batch size, or free some ({TRACEBACK}=1 shows where)"
    return None


def _print_whole(error: BaseException) -> None:
    """Print the traceback with the errors behind it, which `from None` hides from a one-line message."""
    behind: BaseException | None = error
    while behind is not None:
        behind.__suppress_context__ = False
        behind = behind.__cause__ or behind.__context__
    traceback.print_exception(error)
