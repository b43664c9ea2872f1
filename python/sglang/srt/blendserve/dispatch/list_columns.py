"""The requests of a list as columns, in memory: what a plan reads of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.pool.pool_request import Tokens
from sglang.srt.blendserve.requests.columns import COLUMNS, Flag


class Prepared(NamedTuple):
    """What is known of a request before it runs.

    Attributes:
        prompt: (p,) its token ids; of any content where they are not ``exact``.
        exact: whether these are the ids that the engine will compute.
        max_tokens: most tokens of an answer, -1 if only the context limits it.
        known_length: whether each answer has exactly so many.
        namespace: requests of different ones share no prefix.
    """

    prompt: Tokens
    exact: bool
    max_tokens: int
    known_length: bool
    namespace: str


class ListColumns:
    """The rows of a list of known length, which come one by one (`store_plan.Rows`).

    The item of number i has the line number i + 1.
    """

    def __init__(self, count: int, choices: int) -> None:
        """``count``: items of the list; ``choices``: answers to each."""
        self.ready = 0
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros(count, dtype=dtype) for name, dtype in COLUMNS.items()
        }
        self._columns["offset"][:] = -1
        self._columns["choices"][:] = choices
        self._prompts: list[Tokens] = []
        self._namespaces = {"": 0}

    def add(self, item: int, prepared: Prepared) -> None:
        """The item of a number, which was not there, is a row now."""
        row, columns = self.ready, self._columns
        columns["line"][row] = item + 1
        columns["length"][row] = prepared.prompt.size
        columns["cap"][row] = prepared.max_tokens
        columns["known"][row] = prepared.max_tokens if prepared.known_length else -1
        columns["flags"][row] = Flag.EXACT if prepared.exact else 0
        number = self._namespaces.setdefault(prepared.namespace, len(self._namespaces))
        columns["namespace"][row] = number
        self._prompts.append(prepared.prompt)
        self.ready += 1

    def column(self, name: str, rows: int | None = None) -> NDArray[Any]:
        """Return one of `requests.columns.COLUMNS`, so many rows; None: all that are ready."""
        return self._columns[name][: self.ready if rows is None else rows]

    def prompts(self, rows: NDArray[np.int64]) -> list[Tokens]:
        """Return the token ids of some rows."""
        return [self._prompts[row] for row in rows.tolist()]

    def names(self, kind: str) -> list[str]:
        """Return the names that numbers of the column ``namespace`` stand for."""
        assert kind == "namespace"
        return [*self._namespaces]

    def close(self) -> None:
        """Let go of the prompts."""
        self._prompts = []
