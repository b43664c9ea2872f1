"""``completion_window``: how long a batch may take, from ``1h`` to ``7d``."""

from __future__ import annotations

import re

_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])", re.ASCII)
_SECONDS = {"h": 3600, "d": 86400}

SHORTEST = 3600
"""Seconds in ``1h``."""

LONGEST = 7 * 86400
"""Seconds in ``7d``."""


def window_seconds(text: str) -> int:
    """Return the length in seconds of a window such as ``24h`` or ``7d``.

    Raises:
        ValueError: it is not a whole number of hours or days from 1h to 7d.
    """
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(
            "completion_window must be a whole number of hours or days from '1h' to '7d', such "
            "as '24h'."
        )
    return seconds
