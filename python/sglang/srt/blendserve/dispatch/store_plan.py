"""One job's requests in the plan over all jobs, fed from its request store as that grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.dispatch.dispatcher import Dispatcher, JobWork
from sglang.srt.blendserve.dispatch.messages import Place
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.requests.columns import HAS_TOKENS, Flag

_RUNS = -1
"""Stands for the output tokens of a line that has been handed over and has not ended."""

_READ = ("offset", "length", "cap", "known", "namespace", "choices", "line", "flags")


class Rows(Protocol):
    """Requests as columns, of which more and more are there, as a `RequestStore` has them."""

    @property
    def ready(self) -> int:
        """Rows that are there."""
        ...

    def column(self, name: str, rows: int | None = None) -> NDArray[Any]:
        """Return one of `requests.columns.COLUMNS`, so many rows; None: all that are ready."""
        ...

    def prompts(self, rows: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Return the token ids of some rows."""
        ...

    def names(self, kind: str) -> list[str]:
        """Return the names that numbers of a column stand for."""
        ...

    def close(self) -> None:
        """Nobody reads them any more."""
        ...


class StorePlan:
    """A job's requests in the pool of all jobs. A line's prompts and answers are a request each,
    and are handed over together."""

    def __init__(
        self,
        job: str,
        store: Rows,
        dispatcher: Dispatcher,
        skip: NDArray[np.bool_],
        *,
        most_tokens: int,
    ) -> None:
        """Put the rows of ``store`` into the dispatcher's pool as they come.

        Args:
            job: its name.
            skip: by line number, whether it is not to be handed over (again); lines beyond are.
            most_tokens: of a prompt and its answer, where a line sets no limit.
        """
        self.job = job
        self.pool = dispatcher.pool
        self.rows = 0
        """Rows of the store that are in the plan, or were left out of it."""
        self.whole = False
        """Whether the store grows no more."""
        self._store, self._skip = store, skip
        self._most_tokens = most_tokens
        self._dispatcher = dispatcher
        self._requests = self._waiting = 0
        self._numbering = (0, 0)
        self._namespaces: list[str] = []
        # Lines that went ahead of the plan and have no rows yet: output tokens, None: no answer.
        self._ahead: dict[int, int | None] = {}

    @property
    def settled(self) -> bool:
        """Whether all rows that there will be are there."""
        return self.whole and self.rows == self._store.ready

    @property
    def all_handed_over(self) -> bool:
        """Whether nothing will come any more."""
        return self.settled and not self._waiting

    @property
    def unplanned(self) -> int:
        """Requests that are in no plan yet."""
        return self._dispatcher.unplanned[self.job]

    @property
    def planned(self) -> int:
        """Requests that are or were in a plan."""
        return self._requests - self.unplanned

    @property
    def to_hand_over(self) -> int:
        """Requests that are planned and wait."""
        return self._waiting - self.unplanned

    @property
    def starved(self) -> bool:
        """Whether more of it is unplanned than is planned and waits."""
        return self.unplanned > self.to_hand_over

    @property
    def work(self) -> JobWork:
        """The job's predicted work."""
        return self._dispatcher.work_of(self.job)

    def look(self, most: int = 20_000) -> bool:
        """Take up rows that have been written since; say whether there were any.

        Args:
            most: rows at a time, about 0.1 s of work.
        """
        ready = min(self._store.ready, self.rows + most)
        if ready == self.rows:
            return False
        numbers = self._store.column("line")
        while ready < numbers.size and numbers[ready] == numbers[ready - 1]:
            ready += 1  # a line's rows together
        rows = np.arange(self.rows, ready)
        before = self._requests
        self._take_up(rows[self._is_to_plan(rows)])
        self._waiting += self._requests - before
        self._dispatcher.unplanned[self.job] += self._requests - before
        if self._ahead:
            for line in self._ahead.keys() & set(numbers[self.rows : ready].tolist()):
                self._catch_up(line)
        self.rows = ready
        if self.settled:
            self._map_once()
        return True

    def close(self) -> None:
        """Forget the job, and read its store no more."""
        self._dispatcher.end_job(self.job)
        self.close_store()

    def close_store(self) -> None:
        """Read the store no more."""
        self._store.close()

    def take(self, most: int, engine: int = 0) -> list[Place]:
        """Hand over so many lines at ``most`` to an engine."""
        rows = []
        for _ in range(most):
            request = self._dispatcher.hand_over(self.job, engine)
            if request is None:
                break
            self._waiting -= 1
            rows.append(request.payload)
            for one in self._of_line_of(request):
                self._start(one, engine)
        return self._places(rows)

    def started(self, lines: Iterable[int]) -> None:
        """Lines have been handed over without the plan."""
        for line in lines:
            known = [*self._of_line(line)]
            if not known:
                self._ahead[line] = _RUNS
            for request in known:
                self._start(request)

    def put_aside(self, line: int) -> None:
        """A line that was handed over is in no engine for now."""
        for request in self._of_line(line):
            self._dispatcher.windows.put_aside(request.rid)

    def ended(self, line: int, output_tokens: int | None) -> None:
        """A line has its result.

        Args:
            output_tokens: of all its answers, None where it has no answer to learn from.
        """
        requests = [*self._of_line(line)]
        if not requests and line in self._ahead:
            self._ahead[line] = output_tokens
        for request in requests:
            self._waiting -= self.pool.table.waits(request.index)
            self._dispatcher.ended(request)
            if output_tokens is None:
                self.pool.forget(request)
            else:
                self.pool.finish(request, output_tokens // len(requests))

    def _map_once(self) -> None:
        """Have all prompts be parts of one array, of which planning makes no copy: the file has
        been mapped again and again while it grew."""
        requests = [one for one in self.pool.requests_of(self.job) if one.prompt_start >= 0]
        if len({id(one.prompt.base) for one in requests}) > 1:
            rows = np.fromiter((one.payload for one in requests), np.int64, len(requests))
            for request, prompt in zip(requests, self._store.prompts(rows), strict=True):
                request.prompt = prompt

    def _is_to_plan(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(rows,) whether each is a request that is to be handed over."""
        flags, line = (self._store.column(name)[rows] for name in ("flags", "line"))
        skip = np.zeros(rows.size, dtype=np.bool_)
        listed = line < self._skip.size
        skip[listed] = self._skip[line[listed]]
        good: NDArray[np.bool_] = ~skip & (flags & Flag.BAD == 0)
        return good

    def _take_up(self, rows: NDArray[np.int64]) -> None:
        columns = {name: self._store.column(name)[rows] for name in _READ}
        length, cap, known = columns["length"], columns["cap"], columns["known"]
        most = np.where(cap >= 0, cap, self._most_tokens - length)
        most = np.maximum(np.where(known >= 0, known, most), 1)
        prompts, starts = self._store.prompts(rows), columns["offset"].tolist()
        for at in np.flatnonzero(columns["flags"] & HAS_TOKENS == 0).tolist():
            shared_with_nobody = -1 - int(rows[at])
            prompts[at] = np.full(max(int(length[at]), 1), shared_with_nobody, dtype=np.int32)
            starts[at] = -1
        for row, prompt, start, max_tokens, known_length, namespace, choices, line in zip(
            rows.tolist(),
            prompts,
            starts,
            most.tolist(),
            (known >= 0).tolist(),
            self._namespaces_of(columns["namespace"]),
            np.maximum(columns["choices"], 1).tolist(),
            columns["line"].tolist(),
            strict=True,
        ):
            for _ in range(choices):
                request = PoolRequest(
                    self._next_id(line),
                    prompt,
                    max_tokens,
                    known_length,
                    job=self.job,
                    namespace=namespace,
                    prompt_start=start,
                    payload=row,
                )
                self.pool.add(request)
                self._requests += 1

    def _start(self, request: PoolRequest, engine: int | None = None) -> None:
        """``request`` goes into an engine, if it has not gone before."""
        if self.pool.table.waits(request.index):
            self._dispatcher.start(request, engine)
            self._waiting -= 1

    def _namespaces_of(self, numbers: NDArray[np.int32]) -> list[str]:
        """(n,) the namespaces that numbers (n,) stand for in this store."""
        if numbers.max(initial=-1) >= len(self._namespaces):
            self._namespaces = self._store.names("namespace")
        return [*map(self._namespaces.__getitem__, numbers.tolist())]

    def _catch_up(self, line: int) -> None:
        """The rows of a line that went ahead of the plan are there."""
        self.started([line])
        tokens = self._ahead[line]
        if tokens != _RUNS:
            self.ended(line, tokens)

    def _next_id(self, line: int) -> str:
        before, number = self._numbering
        number = number + 1 if before == line else 0
        self._numbering = line, number
        return self._id(line, number)

    def _id(self, line: int, number: int) -> str:
        return f"{self.job}/{line}.{number}"

    def _of_line(self, line: int) -> Iterator[PoolRequest]:
        """The requests of a line that have not ended."""
        known = self.pool.table.by_rid
        for number in count():
            request = known.get(self._id(line, number))
            if request is None:
                return
            yield request

    def _of_line_of(self, request: PoolRequest) -> Iterator[PoolRequest]:
        return self._of_line(int(request.rid.rpartition("/")[2].partition(".")[0]))

    def _places(self, rows: list[int]) -> list[Place]:
        if not rows:
            return []
        chosen = np.array(rows)
        names = ("line", "byte_offset", "byte_length", "prompt")
        line, offset, length, which = (
            self._store.column(name, self.rows)[chosen].tolist() for name in names
        )
        first = (row - number for row, number in zip(rows, which, strict=True))
        return [Place(*values) for values in zip(line, offset, length, first, strict=True)]
