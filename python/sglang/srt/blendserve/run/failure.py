"""How the ``run`` command ends when it cannot go on."""

from __future__ import annotations

FAILED = 1
INTERRUPTED = 130
TIME_IS_UP = 75
"""Exit statuses; 130 is what shells use for a program ended by Ctrl-C, 75 is the "try again later"
of sysexits.h."""


class RunFailure(Exception):
    """The run cannot start or go on; the message says why and what to do, for the user to read."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class EngineDied(RunFailure):
    """The engine died, or hung, while lines were in it."""
