"""How the ``run`` command ends when it cannot go on."""

from __future__ import annotations

FAILED = 1
INTERRUPTED = 130
"""Exit statuses; 130 is what shells use for a program ended by Ctrl-C."""


class RunFailure(Exception):
    """The run cannot start or go on; the message says why and what to do, for the user to read."""

    def __init__(self, message: str, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


class EngineDied(RunFailure):
    """The engine died, or hung, while lines were in it."""
