"""What a user can put right, told in one line."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Says what is wrong, where (file, key, value) and what to do; shown without a traceback."""


def run(main: Callable[[], int | None]) -> None:
    """Run a program's `main` and exit with its code, or with 1 and one line on a UserError."""
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
