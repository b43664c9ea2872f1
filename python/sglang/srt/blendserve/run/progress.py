"""The progress of a run on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TextIO

from tqdm import tqdm

# tqdm's own lock is a semaphore shared with other processes, whose bookkeeper SGLang kills at the
# end together with its children; Python then prints a traceback. One process needs no such lock.
tqdm.set_lock(threading.RLock())

_WINDOW_SECONDS = 15.0
_LINE_SECONDS = 30.0


class Progress:
    """Done of total, and the tokens prefilled and decoded per second of late.

    Tokens count when their request finishes, so the rates lag behind by a request's life. Use as
    a context manager.
    """

    def __init__(self, total: int, done: int, stream: TextIO = sys.stderr) -> None:
        self._total, self._done, self._stream = total, done, stream
        self._prefill = self._decode = 0
        self._marks = deque([(time.monotonic(), 0, 0)])
        self._line_due = time.monotonic() + _LINE_SECONDS
        self._bar = tqdm(
            total=total,
            initial=done,
            unit="req",
            file=stream,
            disable=not stream.isatty(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, prefill_tokens: int, decode_tokens: int) -> None:
        """Count one line as done, and the tokens computed for it."""
        self._done += 1
        self._prefill += prefill_tokens
        self._decode += decode_tokens
        self._bar.update()

    def refresh(self) -> None:
        """Show the present rates; to be called about once a second."""
        now = time.monotonic()
        self._marks.append((now, self._prefill, self._decode))
        while now - self._marks[1][0] > _WINDOW_SECONDS:
            self._marks.popleft()
        since, prefill, decode = self._marks[0]
        seconds = max(now - since, 1e-3)
        rates = (
            f"prefill {(self._prefill - prefill) / seconds:.0f} tok/s, "
            f"decode {(self._decode - decode) / seconds:.0f} tok/s"
        )
        self._bar.set_postfix_str(rates)
        if self._bar.disable and now >= self._line_due:
            self._line_due = now + _LINE_SECONDS
            print(f"{self._done}/{self._total} requests, {rates}", file=self._stream, flush=True)
