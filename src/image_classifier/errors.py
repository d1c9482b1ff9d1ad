"""What a user can put right, told in one line."""

import signal
import sqlite3
import sys
from collections.abc import Callable

from filelock import Timeout


class UserError(Exception):
    """Says what is wrong, where (file, key, value) and what to do; shown without a traceback."""


def run(main: Callable[[], int | None]) -> None:
    """Run a program's `main` and exit with its code, or with 1 and one line on an error of the user's or the disk's."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what is open is closed
    try:
        sys.exit(main())
    except Timeout as error:
        sys.exit(f"error: {error.lock_file} is held by another process doing the same: wait for it to end, or stop it")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except sqlite3.OperationalError as error:
        sys.exit(f"error: a database of DVC cannot be used: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for this
            raise
        sys.exit("error: the GPU's memory is full: lower the batch_size of this stage in params.yaml")
