"""What cannot be had, in one line: of a command exit status 2, of a call an exception."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 2
"""Exit status of a program that refuses what its command line asks for; argparse has the same."""


class Refusal(ValueError):
    """What was asked for cannot be had; the message is one line that says why and what to do."""


@contextmanager
def as_exit() -> Iterator[None]:
    """End the program where a `Refusal` is raised: its line on standard error, status 2."""
    try:
        yield
    except Refusal as refusal:
        print(refusal, file=sys.stderr, flush=True)
        raise SystemExit(STATUS) from refusal
