"""A line for each of several engines below the bar of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

from sglang.srt.blendserve.engines.engine_pool import EngineStanding

_MOST_LINES = 8
"""Engines with a line of their own; of more a terminal has no room beside the bar."""


class EngineLines:
    """What each engine does, on a terminal; `text` says it in a few words. Use as a context
    manager."""

    def __init__(
        self, standings: Callable[[], Sequence[EngineStanding]] | None, stream: TextIO
    ) -> None:
        """``standings``: returns what to show; None: there is one engine, and no line."""
        self._standings = standings
        count = 0 if standings is None else len(standings())
        lines = count if stream.isatty() and count <= _MOST_LINES else 0
        self._lines = [
            tqdm(total=0, position=number + 1, bar_format="{desc}", file=stream, leave=False)
            for number in range(lines)
        ]

    def __enter__(self) -> EngineLines:
        return self

    def __exit__(self, *_: object) -> None:
        for line in self._lines:
            line.close()

    def show(self) -> str | None:
        """Show them; return the same in a few words, None where there is one engine."""
        if self._standings is None:
            return None
        standings = self._standings()
        for number, (line, one) in enumerate(zip(self._lines, standings, strict=False)):
            state = f"{one.in_flight} running" if one.there else "not there"
            again = f", started {one.starts} times" if one.starts > 1 else ""
            line.set_description_str(f"  engine {number}: {state}, {one.answered} answered{again}")
        there = sum(one.there for one in standings)
        return f"{there} of {len(standings)} engines"
