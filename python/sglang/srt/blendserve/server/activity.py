"""What the batch service is doing, in numbers, and the Prometheus gauges that show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from sglang.srt.blendserve.answering.rate_meter import Rates
from sglang.srt.blendserve.dispatch.planned_lines import Standing
from sglang.srt.blendserve.engines.engine_pool import EngineStanding
from sglang.srt.blendserve.store.objects import BatchStatus

STATUSES: tuple[BatchStatus, ...] = get_args(BatchStatus)

_PREFIX = "blendserve:batch"


class Activity(NamedTuple):
    """The batch service at one moment.

    Attributes:
        batches: number of batches in each status, all statuses.
        requests: requests of open batches: ``completed``, ``failed``, ``in_flight`` and
            ``waiting``.
        slots: requests that may be in the engine at once.
        waiting: open batches that cannot be written down for want of disk.
        rates: requests and tokens a second, over the last minute.
        paused: open batches that are paused.
        planned: of the batches that are planned before the engine, requests ``prepared`` and
            ``planned``, and predicted seconds of ``compute`` and of ``memory`` traffic of those
            that were not handed to the engine yet.
        planner_starts: processes started to plan them; more than one means that one has died.
        engines: what each of several does; empty where there is one.
    """

    batches: dict[str, int]
    requests: dict[str, int]
    slots: int
    waiting: int
    rates: Rates
    paused: int
    planned: dict[str, float]
    planner_starts: int
    engines: Sequence[EngineStanding] = ()


class Gauges:
    """Gauges in the registry that SGLang's ``/metrics`` shows.

    Make one only after SGLang has set up its metrics (``--enable-metrics``).
    """

    def __init__(self) -> None:
        # Here and not above: SGLang chooses prometheus_client's mode before its first import.
        from prometheus_client import Gauge

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{_PREFIX}_{name}", text, labels, multiprocess_mode="livesum")

        self._batches = gauge("batches", "Batches by status.", "status")
        self._requests = gauge("open_requests", "Requests of open batches by state.", "state")
        self._slots = gauge("slots", "Requests that may be in the engine at once.")
        self._waiting = gauge("waiting_batches", "Open batches whose directory takes no data.")
        self._rate = gauge("requests_per_second", "Requests answered, over the last minute.")
        self._tokens = gauge(
            "tokens_per_second", "Tokens of answered requests, over the last minute.", "kind"
        )

        self._paused = gauge("paused_batches", "Open batches that are paused.")
        self._planned = gauge(
            "planned_requests", "Requests of open batches in the plan over all of them.", "state"
        )
        self._left = gauge(
            "planned_seconds",
            "Predicted work that was not handed to the engine yet, seconds of its full rates.",
            "resource",
        )
        self._starts = gauge("planner_starts", "Processes started to plan open batches.")
        self._engines = gauge("engine_up", "Whether an engine of several is there.", "engine")
        self._answered = gauge(
            "engine_answered_requests", "Requests that an engine of several answered.", "engine"
        )

    def show(self, activity: Activity) -> None:
        """Set all gauges."""
        for status, number in activity.batches.items():
            self._batches.labels(status).set(number)
        for state, number in activity.requests.items():
            self._requests.labels(state).set(number)
        self._slots.set(activity.slots)
        self._waiting.set(activity.waiting)
        self._rate.set(activity.rates.requests)
        self._tokens.labels("input").set(activity.rates.input_tokens)
        self._tokens.labels("output").set(activity.rates.output_tokens)
        self._paused.set(activity.paused)
        for state in ("prepared", "planned"):
            self._planned.labels(state).set(activity.planned[state])
        for resource in ("compute", "memory"):
            self._left.labels(resource).set(activity.planned[resource])
        self._starts.set(activity.planner_starts)
        for number, engine in enumerate(activity.engines):
            self._engines.labels(str(number)).set(engine.there)
            self._answered.labels(str(number)).set(engine.answered)


def planned_work(standings: Iterable[Standing]) -> dict[str, float]:
    """Add up how far batches are; see `Activity.planned`."""
    found = dict.fromkeys(("prepared", "planned", "compute", "memory"), 0.0)
    for standing in standings:
        found["prepared"] += standing.prepared
        found["planned"] += standing.planned
        found["compute"] += standing.left.compute
        found["memory"] += standing.left.memory
    return found
