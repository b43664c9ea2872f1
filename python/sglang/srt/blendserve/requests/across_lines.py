"""What only the lines together show, for lines that come in any order: ids used twice, and models.

In the end each line has the error that reading the file front to back gives it. Before, a line may
count as valid although an earlier one, read later, has its custom_id; then it is taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.batch_file.line_check import CheckedLine
from sglang.srt.blendserve.batch_file.types import LineError
from sglang.srt.blendserve.batch_file.validation import (
    Rules,
    base_of,
    custom_id_digest,
    duplicate,
    other_model,
)
from sglang.srt.blendserve.requests.columns import Array, Flag
from sglang.srt.blendserve.requests.messages import Prepared

_BAD, _HELD = np.uint8(Flag.BAD), np.uint8(Flag.HELD)

Column = Callable[[str], Array]
"""Returns a column of the rows written so far."""


@dataclass(slots=True)
class Verdict:
    """What a block's lines, or the end of all, change.

    Attributes:
        errors: of lines that are not valid after all.
        rows, flags: rows written before whose flags change, and to what.
    """

    errors: list[LineError] = field(default_factory=list)
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    flags: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))


class AcrossLines:
    """Knows every line so far: about 200 bytes for each.

    Attributes:
        models: models that lines name, without their adapters; their number is their place here.
    """

    def __init__(self, rules: Rules, *, in_order: bool) -> None:
        """Begin with no line.

        Args:
            rules: those of the input.
            in_order: whether lines come in the order of the file.
        """
        self.models = [""]
        self._watches_models = rules.models is None
        self._in_order = in_order
        self._line_of: dict[bytes, int] = {}
        self._first: tuple[int, int] | None = None
        """Lowest line that names a model, so far, and the model's number."""

    def take(self, block: Prepared, column: Column) -> Verdict:
        """Judge the lines of a block: their flags and models are put into its columns."""
        verdict = Verdict()
        bad: list[int] = []
        late: list[int] = []
        own: dict[int, int] = {}
        errors = {error["line"] for error in block.errors}
        for number, custom_id, model in block.lines:
            if custom_id is not None and (later := self._duplicate(number, custom_id)):
                verdict.errors.append(duplicate(later, custom_id))
                (bad if later == number else late).append(later)
                if later == number:
                    continue
            if model is None or not self._watches_models or number in errors:
                continue
            own[number] = self._number_of(base_of(model))
            if not self._in_order:
                continue
            self._first = self._first or (number, own[number])
            if own[number] != self._first[1]:
                first = self.models[self._first[1]]
                verdict.errors.append(other_model(number, custom_id, model, first))
                bad.append(number)
        lines, flags = block.columns["line"], block.columns["flags"]
        # A late one may be of this block.
        flags[np.isin(lines, np.array(bad + late, dtype=np.int64))] |= _BAD
        block.columns["model"][:] = [own.get(line, 0) for line in lines.tolist()]
        changed = self._meet(own, bad)
        if self._first is not None and not self._in_order:
            other = (block.columns["model"] != 0) & (block.columns["model"] != self._first[1])
            flags[other] |= _HELD
        if late or changed:
            self._change(verdict, late, column)
        return verdict

    def settle(self, column: Column, reread: Callable[[int, int, int], CheckedLine]) -> Verdict:
        """Judge the models when all lines are written.

        Args:
            column: of all rows.
            reread: returns a line by number, place in the input and size.
        """
        verdict = Verdict()
        models, flags, lines = (column(name) for name in ("model", "flags", "line"))
        named = (models != 0) & ((flags & _BAD) == 0)
        if self._in_order or not named.any():
            return verdict
        first = int(models[named][np.argmin(lines[named])])
        after = flags & ~_HELD
        wrong = named & (models != first)
        after[wrong] |= _BAD
        places, sizes = column("byte_offset"), column("byte_length")
        rows = {int(lines[row]): int(row) for row in np.flatnonzero(wrong)}
        for line, row in rows.items():
            again = reread(line, int(places[row]), int(sizes[row]))
            model = again.model or self.models[models[row]]
            verdict.errors.append(other_model(line, again.custom_id, model, self.models[first]))
        verdict.rows = np.flatnonzero(after != flags)
        verdict.flags = after[verdict.rows]
        return verdict

    def _duplicate(self, number: int, custom_id: str) -> int | None:
        """Note a line's custom_id; return the later of two lines that have it, None if one has."""
        digest = custom_id_digest(custom_id)
        before = self._line_of.setdefault(digest, number)
        if before == number:
            return None
        self._line_of[digest] = min(before, number)
        return max(before, number)

    def _number_of(self, model: str) -> int:
        if model not in self.models:
            self.models.append(model)
        return self.models.index(model)

    def _meet(self, own: dict[int, int], bad: list[int]) -> bool:
        """Note which line names a model first; return whether another model is first now."""
        valid = [(line, model) for line, model in own.items() if line not in bad]
        before = self._first
        self._first = min(valid + ([before] if before else []), default=None)
        return before is not None and self._first is not None and before[1] != self._first[1]

    def _change(self, verdict: Verdict, late: list[int], column: Column) -> None:
        """Take back rows that were written before."""
        flags, lines, models = column("flags"), column("line"), column("model")
        after = flags.copy()
        after[np.isin(lines, np.array(late, dtype=np.int64))] |= _BAD
        if self._first is not None and not self._in_order:
            other = (models != 0) & (models != self._first[1])
            after = np.where(other, after | _HELD, after & ~_HELD)
        verdict.rows = np.flatnonzero(after != flags)
        verdict.flags = after[verdict.rows].astype(np.uint8)
