"""The progress of a run on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

from sglang.srt.blendserve.dispatch.planned_lines import Standing
from sglang.srt.blendserve.dispatch.remaining_time import RemainingTime
from sglang.srt.blendserve.engines.engine_pool import EngineStanding
from sglang.srt.blendserve.run.engine_lines import EngineLines
from sglang.srt.blendserve.store.tally import Tally

# tqdm's own lock is a semaphore shared with other processes, whose bookkeeper SGLang kills at the
# end together with its children; Python then prints a traceback. One process needs no such lock.
tqdm.set_lock(threading.RLock())

_WINDOW_SECONDS = 15.0
_LINE_SECONDS = 30.0


class Progress:
    """Done of total, what is on its way, the tokens prefilled and decoded per second of late, and
    the time left by predicted work.

    Tokens count when their request finishes, so the rates lag behind by a request's life. Use as
    a context manager.
    """

    def __init__(
        self,
        total: int,
        done: int,
        stream: TextIO = sys.stderr,
        standings: Callable[[], Sequence[EngineStanding]] | None = None,
    ) -> None:
        """Show ``total`` lines, of which an earlier run has done ``done``.

        ``standings``: returns what each of several engines does; None: there is one.
        """
        self._total, self._before, self._stream = total, done, stream
        self._marks = deque([(time.monotonic(), 0, 0)])
        self._line_due = time.monotonic() + _LINE_SECONDS
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="req",
            file=stream,
            disable=not stream.isatty(),
            dynamic_ncols=True,
            # Without tqdm's own time left, which goes by the number of requests.
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )
        self._engines = EngineLines(standings, stream)
        self._left = RemainingTime()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._engines.__exit__()
        self._bar.close()

    def show(self, tally: Tally, running: int = 0, standing: Standing | None = None) -> None:
        """Show what this run has got done, and how fast; to be called about once a second.

        Args:
            tally: of what it has done.
            running: requests in the engine.
            standing: of the plan over all lines; None: there is none.
        """
        now = time.monotonic()
        done = self._before + tally.completed + tally.failed
        self._bar.update(done - self._bar.n)
        self._marks.append((now, tally.input_tokens - tally.cached_tokens, tally.output_tokens))
        while now - self._marks[1][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        (since, *old), (_, *new) = self._marks[0], self._marks[-1]
        prefill, decode = ((b - a) / max(now - since, 1e-3) for a, b in zip(old, new, strict=True))
        parts = [f"{running} running"]
        engines = self._engines.show()
        if engines is not None:
            parts.append(engines)
        if standing is not None:
            parts = [f"{standing.prepared} prepared", f"{standing.planned} planned", *parts]
        parts.append(f"prefill {prefill:.0f} tok/s, decode {decode:.0f} tok/s")
        if standing is None or standing.share is None:
            self._left.note(now, done / max(self._total, 1), by="lines")
        else:
            self._left.note(now, standing.share)
        if self._left.seconds is not None:
            parts.append(f"{tqdm.format_interval(self._left.seconds)} left")
        text = ", ".join(parts)
        self._bar.set_postfix_str(text)
        if self._bar.disable and now >= self._line_due:
            self._line_due = now + _LINE_SECONDS
            print(f"{done}/{self._total} requests, {text}", file=self._stream, flush=True)
