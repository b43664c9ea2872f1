"""How long a job will still take, from how fast its predicted work has been done of late.

Requests are no measure: where long answers come last, half of them are done in a tenth of the time.
"""

from __future__ import annotations

from collections import deque

_LEAST_SECONDS = 30.0
"""Before that much has passed nothing is said."""
_MARK_SECONDS = 5.0
_OF_LATE = 0.5
"""Share of the time so far that counts as of late: rates at the start are those of a sample."""


class RemainingTime:
    """Seconds left of a job whose share of done work is noted now and then."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque()
        self._began: float | None = None
        self._by = ""

    def forget(self) -> None:
        """Begin anew: what comes has nothing to do with what was."""
        self._marks.clear()
        self._began = None

    def note(self, now: float, share: float, *, by: str = "work") -> None:
        """At the second ``now`` the ``share`` of all work is done, 0 to 1.

        ``by``: what it is a share of; with another one than before all begins anew.
        """
        if by != self._by:
            self.forget()
            self._by = by
        if self._began is None:
            self._began = now
        if self._marks and now - self._marks[-1][0] < _MARK_SECONDS:
            return
        self._marks.append((now, share))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _OF_LATE * (now - self._began):
            self._marks.popleft()

    @property
    def seconds(self) -> float | None:
        """Seconds left as of the last note; None: not known (yet)."""
        if len(self._marks) < 2 or self._began is None:
            return None
        (then, before), (now, share) = self._marks[0], self._marks[-1]
        if now - self._began < _LEAST_SECONDS or share <= before:
            return None
        return (1 - share) * (now - then) / (share - before)
