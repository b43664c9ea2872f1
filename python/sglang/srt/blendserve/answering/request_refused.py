"""How a request is refused before the engine sees it."""

from __future__ import annotations


class RequestRefused(ValueError):
    """A request cannot be answered as it stands: status 400.

    Attributes:
        param: the field at fault, as the user wrote it (``messages.0.content``); None if no single
            one is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        """``message`` says what is wrong and how to put it right."""
        super().__init__(message)
        self.param = param
