"""Which lines of one input are in the engine, on the disk before they go in.

When a process ends the hard way, its memory says no more what the engine was working on. The file
has one little-endian 32-bit word a line, at 4 x its number; the word at 0 tells what file it is. A
word holds

- whether the line is in the engine, that is: sent, and its result not synced yet;
- the *group*: how many lines were in the engine with it, itself included, when it last died, 0: it
  was not in it. A line with a group is a suspect;
- how often it was alone in the engine at an end that need not have been the engine's own;
- whether it is *condemned*: it was alone when the engine died, and is not sent again.

Writes go to the page cache: they outlive every end of the process. After an end of the machine
there may be fewer suspects, which then are ordinary lines again.
"""

from __future__ import annotations

import logging
import os
import sys
from array import array
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from sglang.srt.blendserve.store.disk import open_private

logger = logging.getLogger(__name__)

_MAGIC = 0x31474E45  # "ENG1"
_IN = 1 << 31
_CONDEMNED = 1 << 30
_ALONE = 24  # bits 24 to 29
_GROUP = (1 << _ALONE) - 1
_TIMES = 0x3F
_WORD = 4

DOUBTFUL_ENDS = 2
"""Times that a line must have been alone at an end that need not have been the engine's own (a
kill from outside, an online request beside it) to be condemned."""


class End(StrEnum):
    """How it ended while lines were in the engine."""

    ENGINE_DIED = "engine died"
    """The engine's process ended, or hung, and nothing else was in it."""
    DOUBTFUL = "doubtful"
    """Nobody saw how, or other requests were in it, too."""


class EngineRecord:
    """The lines of one input that are in the engine, and those under suspicion.

    Memory: 4 bytes for each line up to the last that was sent. One thread at a time. The file is
    open only while it is read or written, as the journal is.
    """

    def __init__(self, path: Path) -> None:
        """Read the record, creating it if need be.

        Raises:
            OSError: it cannot be read or written.
        """
        self._path = path
        fd = open_private(path, os.O_RDWR)
        try:
            self._words = self._read(fd)
        finally:
            os.close(fd)

    def _read(self, fd: int) -> array[int]:
        data = b""
        while piece := os.pread(fd, 1 << 20, len(data)):
            data += piece
        words = array("I", data[: len(data) // _WORD * _WORD])
        if sys.byteorder == "big":
            words.byteswap()
        if not words or words[0] != _MAGIC:
            if words:
                logger.warning("%s is not a record of the engine's lines; begun anew", self._path)
            os.ftruncate(fd, 0)
            os.pwrite(fd, _MAGIC.to_bytes(_WORD, "little"), 0)
            words = array("I", (_MAGIC,))
        return words

    def enter(self, line: int) -> None:
        """A line is about to be sent to the engine.

        Raises:
            OSError: the disk is full; nothing has changed.
        """
        self._write({line: self._word(line) | _IN})

    def leave(self, lines: Iterable[int]) -> None:
        """Lines have left the engine: their results are synced, or they were given up in order."""
        words = {line: self._word(line) for line in lines}
        self._write({line: word & ~_IN for line, word in words.items() if word & _IN})

    def inside(self) -> list[int]:
        """Return the lines that are in the engine, ascending."""
        return [n for n, word in enumerate(self._words) if n and word & _IN]

    def group(self, line: int) -> int:
        """Return how many lines were in the engine with this one when it last died; 0: none."""
        return self._word(line) & _GROUP

    def condemned(self, line: int) -> bool:
        """Whether the line is not to be sent again."""
        return bool(self._word(line) & _CONDEMNED)

    def suspects(self) -> list[int]:
        """Return the lines that were in the engine at a death, condemned ones included."""
        return [n for n, word in enumerate(self._words) if n and word & _GROUP]

    def died(self, lines: Iterable[int], group: int, end: End) -> list[int]:
        """It ended with these lines in the engine; nothing is in it now. Return the condemned.

        Args:
            lines: those that were `inside` and have no result.
            group: how many lines were in the engine, those of other inputs included.
            end: how it ended.
        """
        rest = {line: self._word(line) & ~_IN for line in self.inside()}
        return self._doubt(lines, group, end, rest)

    def lost(self, lines: Iterable[int], group: int) -> list[int]:
        """One of several engines has died with these lines in it, which are not in it any more;
        return the condemned.

        Args:
            lines: those of this input that were in it and have no result.
            group: how many lines were in it, those of other inputs included.

        Raises:
            OSError: it cannot be written; nothing has changed.
        """
        return self._doubt(lines, group, End.ENGINE_DIED, {})

    def _doubt(
        self, lines: Iterable[int], group: int, end: End, words: dict[int, int]
    ) -> list[int]:
        """Put lines under suspicion and write that, and other ``words``; return the condemned."""
        condemned = []
        for line in lines:
            word = self._word(line)
            times = word >> _ALONE & _TIMES
            if group == 1:
                times = min(times + 1, _TIMES)
                if end is End.ENGINE_DIED or times >= DOUBTFUL_ENDS:
                    word |= _CONDEMNED
                    condemned.append(line)
            kept = word & _CONDEMNED
            words[line] = kept | times << _ALONE | min(group, _GROUP)
        self._write(words)
        return condemned

    def _word(self, line: int) -> int:
        return self._words[line] if line < len(self._words) else 0

    def _write(self, words: dict[int, int]) -> None:
        if not words:
            return
        fd = open_private(self._path, os.O_RDWR)
        try:
            for line, word in words.items():
                os.pwrite(fd, word.to_bytes(_WORD, "little"), _WORD * line)
                missing = line + 1 - len(self._words)
                self._words.frombytes(bytes(_WORD * max(missing, 0)))
                self._words[line] = word
        finally:
            os.close(fd)
