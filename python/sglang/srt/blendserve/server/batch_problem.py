"""Why an open batch waits, in the words of its object."""

from __future__ import annotations

from typing import Any


def problem_of(storage: str | None, *, broken: bool) -> list[dict[str, Any]]:
    """Return why a batch waits, in the form of ``errors.data``; empty when it does not.

    Args:
        storage: why its directory cannot be written, None if it can.
        broken: an error that nobody had thought of has ended it.
    """
    if broken:
        message = "The server had an error; its log says more. The next start tries again."
        return [{"code": "server_error", "message": message, "param": None, "line": None}]
    if storage is None:
        return []
    message = (
        f"The batch waits: its directory cannot be written ({storage}). It goes on by itself when "
        "that is put right; no result is lost."
    )
    return [{"code": "storage_unavailable", "message": message, "param": None, "line": None}]
