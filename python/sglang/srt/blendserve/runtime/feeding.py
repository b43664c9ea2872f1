"""What a pass of the scheduler gives SGLang: the step policy's requests, and how much to prefill.

The requests stand behind the online ones in SGLang's waiting queue while it makes its batch. What
it did not take goes back to the pool.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.policy.state import EngineState
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.arrival_order import hand_over, log_failure
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.engine_state import engine_state
from sglang.srt.blendserve.runtime.offline_request import offline_request
from sglang.srt.blendserve.runtime.receiver import OfflineReceiver
from sglang.srt.blendserve.runtime.request_progress import note_progress
from sglang.srt.blendserve.runtime.watched import Watched

_IDLE_SECONDS = 0.01
"""How long a pass without work waits for the plan that is being made."""


class Feeding(Watched):
    """The part of `BlendScheduler` between the pool and SGLang's waiting queue.

    Attributes:
        planner_failures: how often the plan or the policy failed, and requests went by arrival.
        first_started_at: Unix time at which the first offline request was handed to SGLang.
    """

    chunked_prefill_size: int | None
    chunked_req: Req | None
    waiting_queue: list[Req]
    is_mixed_chunk: bool
    page_size: int
    truncation_align_size: int | None
    new_token_ratio_tracker: Any
    pool: RequestPool
    step_policy: AnyStepPolicy
    offline_receiver: OfflineReceiver
    planner_failures = 0
    first_started_at: float | None = None

    if TYPE_CHECKING:

        def use_pool(self, pool: RequestPool) -> None:
            """Take offline requests into ``pool``, which is empty, from now on."""

        def get_num_allocatable_reqs(self, running_bs: int) -> int:
            """Return how many more requests can run."""

    def _plan_and_feed(self, running_batch: ScheduleBatch) -> bool:
        """Plan if that is due, and queue the pool's choice; say whether decodes go first alone."""
        note_progress(self.pool)
        self.offline_receiver.pass_begins()
        nothing_to_do = (
            not running_batch.reqs and not self.waiting_queue and self.chunked_req is None
        )
        self.pool.plan_if_due(
            quiet=self.offline_receiver.quiet,
            idle_seconds=_IDLE_SECONDS if nothing_to_do else 0.0,
        )
        # Online requests that wait go first, as in SGLang; the pool waits until they are in.
        if self.waiting_queue:
            if self.beside.online.of(self.waiting_queue):
                self.beside.make_way(running_batch, in_flight=self.overlap is not None)
            return False
        if self.online_chunk:
            return False
        if not self._side_by_side and self.beside.decodes_first(running_batch):
            return True
        most = self.beside.most_prefill(running_batch.reqs)
        if most != 0:
            self._feed(running_batch, most)
        return most == 0

    def _feed(self, running_batch: ScheduleBatch, most: int | None) -> None:
        """Put what the step policy chooses into the waiting queue and set the prefill size.

        ``most``: prompt tokens of the step at most; None: any number.
        """
        if not len(self.pool) and self.chunked_req is None:
            return
        if len(self.pool) and not len(self.pool.current.scanner) and not self.pool.current.orders:
            return  # nothing planned yet: the first job is still arriving
        state = self._engine_state(running_batch.reqs, most)
        selection = self.step_policy.select(state)
        if self.blend_cache is not None:
            self.blend_cache.evict_ahead()
        for request in selection.requests:
            self.waiting_queue.append(request.payload)
        if selection.requests:
            running_batch.batch_is_full = False
            self.first_started_at = self.first_started_at or time.time()
        tokens = selection.prefill_tokens if most is None else min(most, selection.prefill_tokens)
        if self.chunked_prefill_size is not None and tokens:
            mixed = len(running_batch.reqs) if self.is_mixed_chunk else 0
            # SGLang cuts chunks to whole pages, and to whole tiles where the attention kernel or
            # the model asks for it, as under deterministic inference: fewer tokens would be none.
            unit = math.lcm(self.page_size, self.truncation_align_size or 1)
            size = -(-tokens // unit) * unit
            if self.truncation_align_size:
                size = min(size, max(self.chunked_prefill_size // unit, 1) * unit)
            self.chunked_prefill_size = size + mixed

    def _serve_by_arrival(self, error: Exception) -> None:
        """Leave the offline requests that are here to SGLang's own queue: the planner failed.

        The ranks of a group see the same calls, fail alike and do this in the same pass.
        """
        self.planner_failures += 1
        log_failure(self.pool, error)
        self.waiting_queue += hand_over(self.pool, self.waiting_queue)
        self.offline_receiver.rest()
        self.pool.abandon()
        self.use_pool(self.pool)
        self.offline_receiver.closed = True  # until the engine is empty

    def _take_back(self) -> None:
        """Return the offline requests that did not get into the batch, in their order."""
        left = [r for r in self.waiting_queue if offline_request(r) is not None]
        if not left:
            return
        self.waiting_queue = [r for r in self.waiting_queue if offline_request(r) is None]
        for req in reversed(left):
            self.pool.put_back(req.blendserve)

    @property
    def _side_by_side(self) -> bool:
        """Whether decodes go on while prompts are computed."""
        return self.is_mixed_chunk or self.overlap is not None

    def _must_decode_first(self, running_batch: ScheduleBatch) -> bool:
        """Whether going on with a partly computed prompt could leave the decodes no slots.

        SGLang makes sure of them, by retraction, in a step of decodes alone and not in a mixed one.
        """
        running = len(running_batch.reqs)
        if not (self._side_by_side and running and self.chunked_req is not None):
            return False
        needed = (self.chunked_prefill_size or 0) + (running + 1) * self.page_size
        return self.kv_cache.obtainable < needed

    @property
    def online_chunk(self) -> bool:
        """Whether the prompt that is partly computed is an online request's."""
        return self.chunked_req is not None and offline_request(self.chunked_req) is None

    def _engine_state(self, running: list[Req], most: int | None) -> EngineState:
        state = engine_state(
            running,
            self.beside.online.decoding,
            self.chunked_req,
            used_slots=self.max_total_num_tokens - self.kv_cache.obtainable,
            free_requests=self.get_num_allocatable_reqs(len(running)),
            online_growth_ratio=self.new_token_ratio_tracker.current,
            cached_tokens=lambda request: self.cached_tokens(request.payload),
        )
        reserve = self.beside.reserve(state)
        return replace(
            state,
            free_requests=state.free_requests - round(reserve.requests),
            online_growth=state.online_growth + reserve.kv_tokens,
            most_prefill=most,
        )

    def cached_tokens(self, req: Req) -> int:
        """Return how many tokens of ``req``, which waits, the prefix cache holds now."""
        if self.blend_cache is None:
            return seams.matched_tokens(self.tree_cache, req)
        return self.blend_cache.cached_tokens(seams.radix_key(req))
