"""What goes wrong with the files that requests come from and answers go to."""

from __future__ import annotations


class DataError(ValueError):
    """Requests cannot be read or answers cannot be written; the message says which file, why and
    what to do."""
