"""SGLang's scheduler over a queue in a given order, for the step model.

SGLang admits a request if its prompt and min(max_tokens, 4096) fit beside what it reserves for the
running ones, min(max_tokens - generated, 4096) times a ratio (`PrefillAdder`). The ratio falls
from 0.7 to 0.1 over 600 steps **that only decode**, not in those that compute prompts too, and
rises after a retraction (`NewTokenRatioTracker`). Once a request did not fit, none is tried before
another has ended or a step has computed prompts; an end in a step that only decodes is seen a step
later (`Scheduler.update_running_batch`).
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.simulator.fast import MAX_RUNNING, FastEngine
from sglang.srt.blendserve.simulator.longest_jobs import LongestJobs
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]

_CLIP = 4096
"""Most output tokens that SGLang reserves for a request, by its environment variable
SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION."""
_RATIO, _LEAST_SHARE = 0.7, 0.14
"""SGLang's first ratio (SGLANG_INIT_NEW_TOKEN_RATIO), and its least one as a share of that."""
_DECAY_STEPS = 600
"""Decode steps over which the ratio falls (SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS)."""
_RETRACT_STEPS = 20
"""Decode steps that SGLang wants room for after a retraction (SGLANG_RETRACT_DECODE_STEPS)."""


class QueuePolicy:
    """Requests of one queue in a given order, with a fixed chunk of tokens per step."""

    def __init__(
        self,
        order: Ints,
        workload: Workload,
        chunk: int,
        scale: float = 1,
        conservativeness: float = 1.0,
    ) -> None:
        """``conservativeness``: SGLang's flag of that name, a factor of the ratio at the start."""
        self._queue = deque(order.tolist())
        self._clip = round(_CLIP / scale)
        self._cap: list[int] = np.minimum(workload.max_tokens, self._clip).tolist()
        self._chunk = chunk
        self._ratio = min(_RATIO * conservativeness, 1.0)
        self._least_ratio = self._ratio * _LEAST_SHARE
        self._decay = (self._ratio - self._least_ratio) / _DECAY_STEPS * scale
        self._retract_steps = _RETRACT_STEPS / scale
        self._limits: list[int] = workload.max_tokens.tolist()
        self._full = False
        self._mixed = False
        """Whether the last step computed prompt tokens."""
        self._ended: list[int] = []
        """Tokens up to their limits of requests whose end the scheduler has not seen yet."""
        self._retracted_now = False

    def choose(self, engine: FastEngine) -> int:
        """Admit from the head of the queue while the rule allows it."""
        if self._mixed:
            self._see_ends()
        budget = 0
        if engine.starting or (self._queue and not self._full):
            least = 1 if engine.starting else 0
            budget = max(self._chunk - len(engine.running) - len(self._ended), least)
            if not self._full:
                self._admit(engine, budget)
        self._mixed = bool(engine.starting)
        if not self._mixed:
            self._update_running(engine)
        return budget

    def finished(self, request: int, output_tokens: int) -> None:
        """Keep what the request had reserved until SGLang sees that it has ended."""
        self._ended.append(min(self._limits[request] - output_tokens, self._cap[request]))

    def retracted(self, request: int, generated: int) -> None:
        """Let the request wait again, behind all others, as SGLang does."""
        self._queue.append(request)
        self._full = False
        self._retracted_now = True

    def _see_ends(self) -> None:
        self._full = False
        self._ended.clear()

    def _update_running(self, engine: FastEngine) -> None:
        """The step only decodes: note who has ended, and let the ratio fall."""
        if self._ended:
            self._see_ends()
        if self._retracted_now:
            done = sum(engine.generated(r) for r in engine.running)
            caps = sum(self._limits[r] for r in engine.running)
            count = len(engine.running)
            self._ratio = min(1.0, (done + self._retract_steps * count) / (caps + 1))
            self._retracted_now = False
        elif engine.running:
            self._ratio = max(self._ratio - self._decay, self._least_ratio)

    def _admit(self, engine: FastEngine, budget: int) -> None:
        spent = sum(engine.todo.values())
        room = float(engine.cache.slots - engine.cache.used)
        cap = self._cap
        room -= self._ratio * sum(
            min(self._limits[r] - engine.step_number + born, cap[r])
            for r, born in engine.running.items()
        )
        room -= len(engine.running) + self._ratio * sum(self._ended)
        room -= sum(cap[r] for r in engine.starting)
        while self._queue and spent < budget:
            request = self._queue[0]
            done = engine.generated(request)
            uncached = engine.prompt[request] + done - engine.cache.hit(request)
            # One token more: SGLang reserves a page for each request.
            need = uncached + min(self._limits[request] - done, self._clip) + 1
            waits = len(engine.running) + len(engine.starting)
            short = need + engine.cache.idle(request) >= room
            if waits and (short or waits >= MAX_RUNNING):
                self._full = True
                break
            used = engine.cache.used
            if not engine.start(request):
                self._full = True
                break
            self._drop()
            spent += engine.todo[request]
            room -= engine.cache.used - used + cap[request] + 1

    def _drop(self) -> None:
        self._queue.popleft()


class EwmaPolicy(QueuePolicy):
    """Longest output first, by what each job has shown (`LongestJobs`)."""

    def __init__(
        self, workload: Workload, chunk: int, scale: float = 1, conservativeness: float = 1.0
    ) -> None:
        nothing = np.zeros(0, dtype=np.int64)
        super().__init__(nothing, workload, chunk, scale, conservativeness)
        self._jobs = LongestJobs(workload.source.tolist(), len(workload.sources), scale)

    def finished(self, request: int, output_tokens: int) -> None:
        """Learn the length of a job's output, besides what `QueuePolicy` does."""
        super().finished(request, output_tokens)
        self._jobs.ended(request, output_tokens)

    def retracted(self, request: int, generated: int) -> None:
        """Let the request wait as the next of its job."""
        super().retracted(request, generated)
        self._jobs.put_back(self._queue.pop())

    def choose(self, engine: FastEngine) -> int:
        """Admit from the job with the longest outputs seen; return the step's prompt tokens."""
        self._queue = self._jobs.queue()
        return super().choose(engine)

    def _drop(self) -> None:
        super()._drop()
        if not self._queue:
            self._queue = self._jobs.queue()
