"""Cells of the comparison: one peer on one file order in one round, kept in a JSON-lines file.

A cell is appended as soon as it is measured. What is in the file is not run again, so rounds that
were interrupted go on where they stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

DIGEST = 8
"""Hexadecimal digits kept of each answer."""


class Key(NamedTuple):
    """Which cell: a file has one of each at most."""

    round: int
    order: str
    peer: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured run.

    Attributes:
        round: from 0; the peers of a round run one after the other and are compared.
        order: order of the file, see `make_documents`.
        peer: name of the peer.
        setting: what must be the same in all cells of a file that have this peer: documents, KV
            cache (tokens), flags.
        seconds: from the first request to the last answer, without the engine's start.
        startup_seconds: the engine's start.
        completed, failed: lines with an answer, lines with an error.
        input_tokens, output_tokens: of the answered lines; each prompt counts whole.
        cached_tokens: prompt tokens found in the prefix cache, by the engine's own count.
        optimum: the most sharing possible with an endless cache; None where it is not known.
        retractions: times that a sequence was thrown out of the KV cache; None: not known.
        load: the machine's load average (1 minute) just before.
        answers: digests of all answers, in the order of the custom_ids.
    """

    round: int
    order: str
    peer: str
    setting: dict[str, object]
    seconds: float
    startup_seconds: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    optimum: float | None
    retractions: int | None
    load: float
    answers: str

    @property
    def key(self) -> Key:
        """Which cell this is."""
        return Key(self.round, self.order, self.peer)

    @property
    def tokens_per_second(self) -> float:
        """Prompt and output tokens a second, as the paper counts throughput."""
        return (self.input_tokens + self.output_tokens) / self.seconds

    @property
    def sharing(self) -> float:
        """The part of the prompt tokens that came from the prefix cache."""
        return self.cached_tokens / self.input_tokens

    def equal_answers(self, other: Cell) -> int:
        """How many answers are the same to the letter as the other cell's."""
        mine, theirs = (
            [cell.answers[at : at + DIGEST] for at in range(0, len(cell.answers), DIGEST)]
            for cell in (self, other)
        )
        return sum(a == b for a, b in zip(mine, theirs, strict=False))


def digests(texts: Mapping[str, str]) -> str:
    """Digests of answers by custom_id, one after the other in the order of the custom_ids."""
    return "".join(
        hashlib.sha256(texts[key].encode()).hexdigest()[:DIGEST] for key in sorted(texts)
    )


class CellFile:
    """The cells that are done; appends one at a time.

    Raises:
        ValueError: a line of the file is not a cell, or a cell of the same peer was measured with
            another setting; the message names the line and the mend.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: dict[Key, Cell] = {}
        if not path.exists():
            return
        whole = path.read_bytes()
        # A last line without its end was cut short by a crash: that cell is run again.
        kept = whole[: whole.rfind(b"\n") + 1]
        if kept != whole:
            path.write_bytes(kept)
        for number, text in enumerate(kept.decode().splitlines(), 1):
            try:
                cell = Cell(**json.loads(text))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number} is not a cell: {error}") from None
            self._cells[cell.key] = cell

    @property
    def cells(self) -> list[Cell]:
        """All cells, in the order in which they were measured."""
        return list(self._cells.values())

    def has(self, key: Key, setting: Mapping[str, object]) -> bool:
        """Whether the cell is done; a cell of this peer with another setting is an error."""
        for cell in self._cells.values():
            if cell.peer == key.peer and cell.setting != setting:
                raise ValueError(
                    f"{self._path} has a cell of {key.peer} with {json.dumps(cell.setting)}, not "
                    f"{json.dumps(dict(setting))}: choose another file, or another name for it"
                )
        return key in self._cells

    def append(self, cell: Cell) -> None:
        """Add a cell to the file at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(cell)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._cells[cell.key] = cell
