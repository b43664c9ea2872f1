"""Offline requests beside online ones: what the latency targets leave of each step to them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.step_times import StepLoad, StepTimes
from sglang.srt.blendserve.latencies import LatencyTargets
from sglang.srt.blendserve.policy.latency_targets import (
    Allowance,
    quiet_prefill,
)
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.offline_request import offline_request
from sglang.srt.blendserve.runtime.online import OnlineRequests, Room, most_kv_tokens
from sglang.srt.blendserve.runtime.parking import Parking
from sglang.srt.blendserve.runtime.view import OnlineScheduler

logger = logging.getLogger(__name__)

_UNSEEN = 64
"""Steps that are learned from at once while there is no online request."""

_MOST_RESERVED = 0.5
"""Part of the engine's room that is kept free for online requests that may come, at most."""


class BesideOnline:
    """Holds each step of a scheduler to the latency targets of its online requests.

    Online requests go before all that waits, as in SGLang. While one is there, or expected, a step
    decodes as many offline requests and computes as much of their prompts as the targets leave
    (`policy.latency_targets`); who has no place is parked. When they need memory, they find what a
    reserve keeps free, and beyond that what offline requests are given back for.
    """

    def __init__(
        self, scheduler: OnlineScheduler, targets: LatencyTargets, cost: CostModel
    ) -> None:
        self.targets = targets
        self.times = StepTimes(cost)
        self.parking = Parking(scheduler)
        self.online = OnlineRequests(cost, scheduler.cached_tokens)
        self.clock: Callable[[], float] = time.perf_counter
        self._scheduler = scheduler
        self._allowance: Allowance | None = None
        self._measured: list[tuple[StepLoad, float]] = []
        self._warned = False
        self._blocked = False
        self.prefilled = False
        """Whether the last step computed prompts."""
        self._left = self._used = 0.0

    # --- in each pass ----------------------------------------------------------------------------

    def look(self, running: list[Req]) -> None:
        """Note who is online and what the targets leave to others; to be called in each pass."""
        scheduler, online = self._scheduler, self.online
        waiting = online.of(scheduler.waiting_queue)
        if scheduler.online_chunk:
            waiting = [*online.of([scheduler.chunked_req]), *waiting]
        decoding = online.of(running)
        self._allowance = None
        # Where the planner has failed, offline requests are in SGLang's queue themselves.
        if scheduler.offline_receiver.closed:
            return
        if online.ever or len(self._measured) >= _UNSEEN:
            self._learn()
        computing = [] if scheduler.overlap is None else online.of(scheduler.overlap.prefilled())
        if not (online.ever or waiting or decoding or computing):
            return
        last_step = scheduler.step_timer.last_seconds
        now, last_step = scheduler.ranks.of_first(self.clock(), last_step)
        online.look(now, waiting, decoding, computing)
        if online.expected:
            load = online.load(prefill=bool(waiting), last_step=last_step)
            self._allowance = Allowance(self.targets, self.times, load)
            self._warn_of_the_impossible()

    def add(self, load: StepLoad, seconds: float) -> None:
        """Take in a step and how long it took here (seconds); it is learned in a later pass.

        All ranks learn what the first one saw.
        """
        self._measured.append((load, seconds))

    def _learn(self) -> None:
        """Learn from the steps since the last time, with the first rank's clock."""
        measured, self._measured = self._measured, []
        if not measured:
            return
        seconds = self._scheduler.ranks.of_first(*(seconds for _, seconds in measured))
        for (load, _), took in zip(measured, seconds, strict=True):
            self.times.add(load, took)

    def _warn_of_the_impossible(self) -> None:
        """Say once that the target for the first token is below what a prompt takes alone."""
        if self._warned or self.times.steps < _UNSEEN:
            return
        alone = self.times.seconds(self.online.usual_step(prefill=True))
        if self.targets.ttft.over(alone) < alone:
            self._warned = True
            logger.warning(
                "BlendServe: --blendserve-online-ttft asks for less than the %.0f ms that the "
                "prompt of an online request takes alone; a batch hardly moves beside it.",
                1000 * alone,
            )

    def arrange(self, batch: ScheduleBatch) -> ScheduleBatch:
        """Park offline requests of ``batch``, or let parked ones go on; return what decodes."""
        allowed = None if self._allowance is None else self._allowance.decodes
        scheduler = self._scheduler
        if scheduler.model_config.is_encoder_decoder or not seams.goes_on_mixed(scheduler):
            allowed = None  # SGLang makes no such batch of requests that decode
        return self.parking.arrange(batch, allowed, self.online.now)

    def make_way(self, batch: ScheduleBatch, *, in_flight: bool) -> None:
        """Let the online requests that wait in before all else.

        An offline prompt that is partly computed waits in the pool meanwhile, its KV in the prefix
        cache. If the last pass could admit none of those that wait, offline requests are given
        back until the first of them has room.

        Args:
            batch: what decodes.
            in_flight: whether the requests of ``batch`` may be in a step that runs on a stream of
                its own: their slots must then stay.
        """
        scheduler = self._scheduler
        batch.batch_is_full = False  # by offline requests, it may be
        chunked = scheduler.chunked_req
        # What was computed of its log probabilities would be lost.
        if chunked is not None and not scheduler.online_chunk and not chunked.return_logprob:
            scheduler.chunked_req = None
            seams.retract(scheduler, chunked)
            scheduler.pool.put_back(chunked.blendserve)
        if self._blocked:
            first = self.online.of(scheduler.waiting_queue)[:1]
            needs = sum(map(most_kv_tokens, first)) - scheduler.kv_cache.obtainable
            self._free(max(needs, 1), None if in_flight else batch)

    def admitted(self, waited: int) -> None:
        """Learn that of ``waited`` online requests the pass could admit none."""
        self._blocked = 0 < waited <= len(self._scheduler.waiting_queue)

    def secure_decodes(self, batch: ScheduleBatch) -> None:
        """Give offline requests back rather than retract an online one for want of memory."""
        if not (self.parking.parked or self.online.decoding):
            return
        if seams.finishing_in_flight(self._scheduler, batch):
            return  # these free their slots with the step in flight
        while not batch.check_decode_mem():
            if not self._give_back_one(batch):
                return

    def decodes_first(self, batch: ScheduleBatch) -> bool:
        """Return whether it is the decodes' turn, where they do not share a forward with prefill.

        SGLang goes on with prefill as long as there is any, and decodes nothing meanwhile; beside
        online requests prefill and decode take turns.
        """
        return self.prefilled and bool(self.online.of(batch.reqs))

    def launches(self, step: StepLoad) -> None:
        """Note what the step that comes holds, all of it."""
        if self._allowance is not None and self._allowance.seconds < math.inf:
            self._left += self._allowance.left
            self._used += self._allowance.used(step)

    # --- what is left ----------------------------------------------------------------------------

    def most_prefill(self, running: list[Req]) -> int | None:
        """Return how many prompt tokens of offline requests the step may compute; None: any."""
        chunk = self._scheduler.chunked_req
        context = 0 if chunk is None else seams.prefix_tokens(chunk)
        if self._allowance is None:
            if not self.online.ever:
                return None
            usual = self.online.usual_step(prefill=True)
            return quiet_prefill(self.targets, self.times, usual, context)
        if self.parking.parked:
            return 0  # those go on first
        decoding = [req for req in running if offline_request(req) is not None]
        read = sum(len(req.origin_input_ids) + len(req.output_ids) for req in decoding)
        return self._allowance.prefill(len(decoding), read, context)

    def reserve(self, state: EngineState) -> Room:
        """Return what is kept free for online requests that may come: no more than half of all."""
        scheduler, reserve = self._scheduler, self.online.reserve
        requests = _MOST_RESERVED * (state.running + state.free_requests)
        kv_tokens = _MOST_RESERVED * scheduler.max_total_num_tokens
        return Room(min(reserve.requests, requests), min(reserve.kv_tokens, kv_tokens))

    def figures(self) -> dict[str, Any]:
        """Return what online requests feel (seconds) and what they displace.

        ``left_seconds``: what the targets left to offline requests of all steps beside online ones;
        ``used_seconds``: what these took of it, both by the step model.
        """
        first = self.times.seconds(self.online.usual_step(prefill=True))
        each = self.times.seconds(self.online.usual_step(prefill=False))
        targets = (self.targets.ttft.over(first), self.targets.tpot.over(each))
        ttft, tpot = (None if one == math.inf else one for one in targets)
        return {
            **self.online.figures(),
            "ttft_target": ttft,
            "tpot_target": tpot,
            "parked": len(self.parking.parked),
            "parked_in_all": self.parking.count,
            "left_seconds": self._left,
            "used_seconds": self._used,
        }

    # --- memory ----------------------------------------------------------------------------------

    def _free(self, kv_tokens: int, batch: ScheduleBatch | None) -> None:
        """Give back offline requests until about ``kv_tokens`` slots are free that were theirs."""
        while kv_tokens > 0:
            freed = self._give_back_one(batch)
            if not freed:
                return
            kv_tokens -= freed

    def _give_back_one(self, batch: ScheduleBatch | None) -> int:
        """Give the youngest offline request back; return the slots that it had, and kept free."""
        req = self.parking.youngest(batch)
        if req is None:
            return 0
        request = offline_request(req)
        freed = 1  # one that the pool has handed over, when the planner failed
        if request is not None:
            freed = request.held_tokens + max(request.generated, int(request.expected_tokens))
        self.parking.give_back(req, batch)
        self._scheduler._add_request_to_queue(req, is_retracted=True)
        return max(freed, 1)
