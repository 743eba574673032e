"""What the command-line tools share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_errors() -> Iterator[None]:
    """An error that the user can cure ends the process: its sentence on stderr, no traceback, exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(str(error))
