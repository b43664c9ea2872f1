"""Faults that a test asks the scheduler for, by the variable ``BLENDSERVE_TEST_FAULT``.

- ``kill:TEXT``: the scheduler's process is killed (SIGKILL) as soon as a request whose prompt holds
  TEXT is in its batch.
- ``plan:N``, ``policy:N``: the N-th time (from 1) that the scheduler asks for a plan, or the step
  policy for a choice, raises; ``thread:N``: the N-th plan that is made in the planning thread.

Without the variable nothing of this runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

VARIABLE = "BLENDSERVE_TEST_FAULT"


class FaultAskedFor(RuntimeError):
    """The fault that was asked for."""


class InjectedFault:
    """The one fault that is asked for."""

    def __init__(self, kind: str, argument: str) -> None:
        self._kind, self._argument = kind, argument
        self._count = 0

    @classmethod
    def asked_for(cls) -> InjectedFault | None:
        """Return the fault that the environment asks for, None if it asks for none.

        Raises:
            ValueError: there is no such fault.
        """
        text = os.environ.get(VARIABLE)
        if not text:
            return None
        kind, _, argument = text.partition(":")
        if kind not in ("kill", "plan", "policy", "thread") or not argument:
            raise ValueError(
                f"{VARIABLE} is {text!r}; it must be kill:TEXT, plan:N, policy:N or thread:N"
            )
        if kind != "kill":
            int(argument)
        return cls(kind, argument)

    def batch(self, reqs: list[Req], tokenizer: Any) -> None:
        """Kill this process if a marked request is among ``reqs``, which are about to run."""
        if self._kind != "kill":
            return
        for req in reqs:
            if self._argument in tokenizer.decode([*req.origin_input_ids]):
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self, scheduler: Any) -> None:
        """Have the scheduler's pool and policy fail where that is asked for."""
        if self._kind == "plan":
            scheduler.pool.plan_if_due = self._faulty(scheduler.pool.plan_if_due)
        elif self._kind == "policy":
            scheduler.step_policy.select = self._faulty(scheduler.step_policy.select)
        elif self._kind == "thread":
            begin = scheduler.pool._background.begin
            scheduler.pool._background.begin = lambda work, requests: begin(
                self._faulty(work), requests
            )

    def _faulty(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*args: Any, **options: Any) -> Any:
            self._count += 1
            if self._count == int(self._argument):
                raise FaultAskedFor(f"a test asked for it ({VARIABLE})")
            return work(*args, **options)

        return faulty
