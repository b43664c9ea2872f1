"""SGLang's scheduler with a pool of offline requests beside its waiting queue.

Only the seams are overridden: where a request enters the queue, where the next prefill batch is
made, where requests are aborted. In each pass the step policy names a few requests and a number of
prompt tokens; they are put behind the online requests in the waiting queue, SGLang makes its batch
with that many tokens, and what it did not take goes back to the pool.
"""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.managers import scheduler as upstream
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import match_prefix_for_req

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.policy.named import automatic_pace, make_step_policy
from sglang.srt.blendserve.policy.step_policy import EngineState, StepPolicy
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.request_pool import PoolRequest, RequestPool
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.cpu.paging import use_torch_paging
from sglang.srt.blendserve.runtime.device import this_device
from sglang.srt.blendserve.runtime.online import OnlineRequests
from sglang.srt.blendserve.runtime.overlap.lanes import make_lanes
from sglang.srt.blendserve.runtime.overlap.loop import OverlapLoop
from sglang.srt.blendserve.runtime.overlap.sm_split import WholeChunks
from sglang.srt.blendserve.runtime.pool_state import pool_state
from sglang.srt.blendserve.runtime.prefill_adder import BlendPrefillAdder, offline_request
from sglang.srt.blendserve.runtime.receiver import Intake
from sglang.srt.blendserve.runtime.record.step_feedback import StepFeedback
from sglang.srt.blendserve.runtime.record.step_record import StepRecorder
from sglang.srt.blendserve.runtime.record.step_sinks import lane_trace, step_sinks
from sglang.srt.blendserve.settings import POLICY, Settings

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 0.01
"""How long a pass without work waits for the plan that is being made."""


def _planning_passes(requests: int) -> int:
    """Scheduling passes that a plan of so many requests is given: 100,000 take 2 to 5 seconds."""
    return 16 + requests // 500


class BlendScheduler(upstream.Scheduler):
    """SGLang's scheduler under ``--schedule-policy blendserve``.

    With any other policy the constructor returns SGLang's own scheduler and this class is unused.
    """

    chunked_prefill_size: int | None
    waiting_queue: list[Req]
    overlap: OverlapLoop | None = None
    """Set while two lanes run (``--blendserve-overlap``)."""

    def __new__(cls, server_args: Any, *args: Any, **kwargs: Any) -> Any:
        if server_args.schedule_policy != POLICY:
            stock = cls.__mro__[1]  # by now `upstream.Scheduler` names this class
            return stock(server_args, *args, **kwargs)
        return super().__new__(cls)

    def init_schedule_policy(self) -> None:
        if not self.is_generation:
            # Embeddings have no decode to mix with; SGLang would decode them in a mixed step.
            self.is_mixed_chunk = False
        # Online requests keep SGLang's default order.
        self.schedule_policy = "fcfs"
        super().init_schedule_policy()
        upstream.PrefillAdder = BlendPrefillAdder
        settings: Settings = self.server_args.blendserve
        cost = CostModel(
            ModelSpec.from_folder(self.server_args.model_path),
            this_device(self.device, settings.device, self.ps.attn_tp_size, self.attn_tp_cpu_group),
        )
        # All ranks of a group must take the same decisions, so theirs go by the count of passes.
        self.pool = RequestPool(
            cost,
            self.max_total_num_tokens,
            keep_sharing=settings.keep_sharing,
            background=Background(_planning_passes if self.ps.tp_size > 1 else None),
        )
        self.online = OnlineRequests(settings.online_share)
        self.intake = Intake(self.pool)
        if self.device == "cpu":
            use_torch_paging()
        if isinstance(self.tree_cache, BlendRadixCache):
            self.tree_cache.follow(self.pool)
        if settings.overlap == "chunks":
            # SGLang starts PD multiplexing without chunks only; its chunk logic works all the same.
            self.chunked_prefill_size = settings.overlap_chunk
        self.step_policy = self._make_step_policy(settings)
        self.retractions = 0
        sinks = step_sinks(self, settings.trace)
        self.step_recorder = StepRecorder(self, sinks) if sinks else None
        self.step_feedback = StepFeedback(self) if settings.overlap == "off" else None
        logger.info(
            "BlendServe plans for %s on %s, KV cache of %d tokens.",
            cost.model.name,
            cost.device.name,
            self.max_total_num_tokens,
        )

    def _make_step_policy(self, settings: Settings) -> StepPolicy:
        chunk = self.chunked_prefill_size or self.max_prefill_tokens
        if settings.overlap != "off" and settings.pace == "auto":
            return StepPolicy(
                self.pool,
                WholeChunks(settings.overlap_chunk),
                max_tokens=settings.overlap_chunk,
                whole_prompts=self.chunked_prefill_size is None,
            )
        # Spreading prefill over the decodes needs both in one forward; on a CPU so few tokens hide
        # the loading of the weights that there is nothing to spread it for.
        full_chunks = self.device == "cpu" or not self.is_mixed_chunk
        automatic = "fixed" if full_chunks else automatic_pace(overlaps=False)
        return make_step_policy(
            self.pool,
            automatic if settings.pace == "auto" else settings.pace,
            max_tokens=chunk,
            # Without mixing, a prefill holds up every decode: do it seldom and in full chunks.
            min_tokens=(
                self.page_size if self.is_mixed_chunk or settings.overlap != "off" else chunk
            ),
            whole_prompts=self.chunked_prefill_size is None,
        )

    # --- arrival -----------------------------------------------------------------------------

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        offline = offline_request(req)
        if offline is not None:
            self.pool.put_back(offline)
            self.retractions += 1
            return
        if not self.intake.wants(req):
            super()._add_request_to_queue(req, is_retracted)
            return
        if not self._set_or_validate_priority(req):
            return
        self.intake.take(req)
        req.time_stats.set_wait_queue_entry_time()

    # --- the next batch ------------------------------------------------------------------------

    def _get_new_batch_prefill_raw(
        self, prefill_delayer_single_pass: Any, running_batch: ScheduleBatch
    ) -> tuple[ScheduleBatch | None, ScheduleBatch]:
        self._note_progress()
        self.intake.pass_begins()
        nothing_to_do = (
            not running_batch.reqs and not self.waiting_queue and self.chunked_req is None
        )
        self.pool.plan_if_due(
            quiet=self.intake.quiet,
            idle_seconds=_IDLE_SECONDS if nothing_to_do else 0.0,
        )
        stock_chunk = self.chunked_prefill_size
        # Online requests that wait go first, as in SGLang; the pool waits until they are in.
        batch = None
        if not self.waiting_queue and not self._online_chunk():
            if not self._side_by_side and self.online.decode_first(running_batch.reqs):
                self.online.launches(prefill=False)
                return None, running_batch
            self._feed(running_batch)
        try:
            if self._must_decode_first(running_batch):
                return None, running_batch
            batch, running_batch = super()._get_new_batch_prefill_raw(
                prefill_delayer_single_pass=prefill_delayer_single_pass,
                running_batch=running_batch,
            )
            return batch, running_batch
        finally:
            self.online.launches(prefill=batch is not None)
            self.chunked_prefill_size = stock_chunk
            self._take_back()

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
        return bool(
            self._free_slots() < (self.chunked_prefill_size or 0) + (running + 1) * self.page_size
        )

    def _free_slots(self) -> int:
        free = self.token_to_kv_pool_allocator.available_size()
        return int(free + self.tree_cache.evictable_size())

    def _note_progress(self) -> None:
        """See how far the requests in flight are, and which have left."""
        for request in self.pool.running:
            req: Req = request.payload
            request.generated = len(req.output_ids)
            if req.finished_reason is not None:
                if isinstance(req.finished_reason, FINISH_ABORT):
                    self.pool.forget(request)
                else:
                    self.pool.finish(request, request.generated)
            elif req.to_finish is not None and req.req_pool_idx is None:
                self.pool.forget(request)  # aborted for want of memory: it never runs again

    def _online_chunk(self) -> bool:
        return self.chunked_req is not None and offline_request(self.chunked_req) is None

    def _feed(self, running_batch: ScheduleBatch) -> None:
        """Put what the step policy chooses into the waiting queue and set the prefill size."""
        if not len(self.pool) and self.chunked_req is None:
            return
        if len(self.pool) and not len(self.pool.scanner) and not self.pool.plans_made:
            return  # nothing planned yet: the first job is still arriving
        state = self._engine_state(running_batch.reqs, self.online.look(running_batch.reqs))
        selection = self.step_policy.select(state)
        if isinstance(self.tree_cache, BlendRadixCache):
            self.tree_cache.evict_ahead()
        for request in selection.requests:
            self.waiting_queue.append(request.payload)
        if selection.requests:
            running_batch.batch_is_full = False
        tokens = self.online.limit(self.pool.cost, state, selection.prefill_tokens)
        if self.chunked_prefill_size is not None and tokens:
            mixed = len(running_batch.reqs) if self.is_mixed_chunk else 0
            pages = -(-tokens // self.page_size)
            self.chunked_prefill_size = pages * self.page_size + mixed

    def _engine_state(self, running: list[Req], online: list[Req]) -> EngineState:
        """``online``: those of the ``running`` requests that are not of the pool."""
        chunk = None if self.chunked_req is None else offline_request(self.chunked_req)
        growth = sum(r.sampling_params.max_new_tokens - len(r.output_ids) for r in online)
        return EngineState(
            running=len(running),
            kv_tokens=sum([len(r.origin_input_ids) + len(r.output_ids) for r in running]),
            used_slots=self.max_total_num_tokens - self._free_slots(),
            cached_tokens=self._cached_tokens,
            free_requests=self.get_num_allocatable_reqs(len(running)),
            online_growth=growth * self.new_token_ratio_tracker.current,
            chunk=chunk,
            chunk_tokens=(
                0
                if chunk is None
                else len(self.chunked_req.full_untruncated_fill_ids)
                - len(self.chunked_req.prefix_indices)
            ),
        )

    def _cached_tokens(self, request: PoolRequest) -> int:
        req: Req = request.payload
        if isinstance(self.tree_cache, BlendRadixCache):
            tokens = req.origin_input_ids
            if req.output_ids:  # it was retracted
                tokens = tokens + req.output_ids
            return self.tree_cache.cached_tokens(tokens, req.extra_key)
        return len(match_prefix_for_req(self.tree_cache, req).device_indices)

    def _take_back(self) -> None:
        """Return the offline requests that did not get into the batch, in their order."""
        left = [r for r in self.waiting_queue if offline_request(r) is not None]
        if not left:
            return
        self.waiting_queue = [r for r in self.waiting_queue if offline_request(r) is None]
        for req in reversed(left):
            self.pool.put_back(req.blendserve)

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        if self.step_recorder is not None and not batch.split_index:  # not again for more layers
            self.step_recorder.launched(batch)
        if self.step_feedback is not None:
            self.step_feedback.launched(batch)
        return super().run_batch(batch, *args, **kwargs)

    # --- two lanes (``--blendserve-overlap``) ----------------------------------------------------

    def init_pdmux(self) -> None:
        # Before the model is loaded: its CUDA graphs are captured on these streams.
        args = self.server_args
        self.lanes = make_lanes(args.device, self.ps.gpu_id, args.blendserve.overlap_sm)

    def event_loop_pdmux(self) -> None:
        self.overlap = OverlapLoop(self, self.lanes, lane_trace(self))
        self.overlap.run()

    def get_num_allocatable_reqs(self, running_bs: int) -> int:
        joining = 0 if self.overlap is None else self.overlap.joining_requests
        return int(super().get_num_allocatable_reqs(running_bs + joining))

    # --- abort, idle, state ----------------------------------------------------------------------

    def abort_request(self, recv_req: AbortReq) -> None:
        super().abort_request(recv_req)
        if self.overlap is not None:
            self.overlap.abort(recv_req)
        for request in self.intake.to_abort(recv_req):
            self.ipc_channels.send_to_tokenizer.send_output(
                AbortReq(rid=request.rid), request.payload
            )
            self.pool.forget(request)

    def on_idle(self) -> None:
        if self.step_recorder is not None:
            self.step_recorder.idle()
        if self.step_feedback is not None:
            self.step_feedback.idle()
        if self.is_fully_idle():
            self.intake.rest()
            if isinstance(self.tree_cache, BlendRadixCache):
                self.tree_cache.check_when_idle()
        super().on_idle()

    def is_fully_idle(self, for_health_check: bool = False) -> bool:
        if self.overlap is not None and self.overlap.busy:
            return False
        return super().is_fully_idle(for_health_check) and len(self.pool) == 0

    def get_internal_state(self, recv_req: Any) -> Any:
        output = super().get_internal_state(recv_req)
        self._note_progress()  # what has ended since the last pass no longer runs
        output.internal_state["blendserve"] = pool_state(self)
        return output
