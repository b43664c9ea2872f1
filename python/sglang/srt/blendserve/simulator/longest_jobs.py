"""Longest output first, by an exponentially weighted mean of what each job has shown (LPT-EWMA)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

_WEIGHT = 0.1
"""Weight of a new length against the mean so far: an assumption, as `_FIRST_GUESS` is."""
_FIRST_GUESS = 256.0
"""Output tokens that a job is taken to have before any of its requests has ended."""


class LongestJobs:
    """Waiting requests by job. Iterating takes them, from the job with the longest outputs yet."""

    def __init__(self, job: Sequence[int], jobs: int, scale: float = 1) -> None:
        """``job``: (n,) that of each request; ``scale``: of the replica, which divides lengths."""
        self._job = job
        self._mean = [_FIRST_GUESS / scale] * jobs
        self._queues: list[deque[int]] = [deque() for _ in range(jobs)]
        for request, its_job in enumerate(job):
            self._queues[its_job].append(request)

    def ended(self, request: int, output_tokens: int) -> None:
        """Learn from ``request``, which has ended after ``output_tokens`` tokens."""
        job = self._job[request]
        self._mean[job] += _WEIGHT * (output_tokens - self._mean[job])

    def put_back(self, request: int) -> None:
        """A request waits again, as the next of its job."""
        self._queues[self._job[request]].appendleft(request)

    def queue(self) -> deque[int]:
        """The queue of the job with the longest outputs of those that have requests left, or an
        empty one."""
        filled = [job for job, queue in enumerate(self._queues) if queue]
        return self._queues[max(filled, key=lambda job: self._mean[job])] if filled else deque()

    def __iter__(self) -> Iterator[int]:
        while queue := self.queue():
            yield queue.popleft()
