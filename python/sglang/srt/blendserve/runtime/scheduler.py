"""SGLang's scheduler with a pool of offline requests beside its waiting queue.

Only the seams are overridden: where a request enters the queue, where the next prefill batch is
made, where requests are aborted. In each pass the step policy names a few requests and a number of
prompt tokens; they are put behind the online requests in the waiting queue, SGLang makes its batch
with that many tokens, and what it did not take goes back to the pool.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers import scheduler as upstream
from sglang.srt.managers.io_struct import AbortReq, SetInternalStateReqOutput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from sglang.srt.blendserve import hook_check
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime import compatibility
from sglang.srt.blendserve.runtime.beside_online import BesideOnline
from sglang.srt.blendserve.runtime.cache.integrity import check_when_idle
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.cpu.paging import use_torch_paging
from sglang.srt.blendserve.runtime.device import this_device
from sglang.srt.blendserve.runtime.engine_policy import EngineTraits, engine_policy
from sglang.srt.blendserve.runtime.engine_pool import engine_cost, engine_pool
from sglang.srt.blendserve.runtime.feeding import Feeding
from sglang.srt.blendserve.runtime.injected_fault import InjectedFault
from sglang.srt.blendserve.runtime.offline_request import offline_request
from sglang.srt.blendserve.runtime.overlap.lane_trace import LaneRow, LaneTrace, lane_path
from sglang.srt.blendserve.runtime.overlap.lanes import make_lanes
from sglang.srt.blendserve.runtime.overlap.overlap_loop import OverlapLoop
from sglang.srt.blendserve.runtime.overlap.turns import Turns
from sglang.srt.blendserve.runtime.pool_state import pool_state, told
from sglang.srt.blendserve.runtime.prefill_adder import BlendPrefillAdder
from sglang.srt.blendserve.runtime.ranks import RankGroup
from sglang.srt.blendserve.runtime.receiver import OfflineReceiver
from sglang.srt.blendserve.runtime.record.row_file import RowFile, trace_file
from sglang.srt.blendserve.runtime.record.step_record import StepRecorder
from sglang.srt.blendserve.runtime.record.step_sinks import step_sinks
from sglang.srt.blendserve.runtime.record.step_timer import LearnsFromSteps, StepTimer
from sglang.srt.blendserve.runtime.request_progress import note_progress
from sglang.srt.blendserve.settings import POLICY, Settings

logger = logging.getLogger(__name__)


class BlendScheduler(upstream.Scheduler, Feeding):
    """SGLang's scheduler under ``--schedule-policy blendserve``.

    With any other policy the constructor returns SGLang's own scheduler and this class is unused.
    """

    step_recorder: StepRecorder | None = None
    """Set where metrics or a step trace are asked for."""
    step_timer: StepTimer
    _injected: InjectedFault | None = None

    def __new__(cls, server_args: Any, *args: Any, **kwargs: Any) -> Any:
        if server_args.schedule_policy != POLICY:
            stock = cls.__mro__[1]  # by now `upstream.Scheduler` names this class
            return stock(server_args, *args, **kwargs)
        hook_check.require_in_place()
        compatibility.require_settings(server_args)
        return super().__new__(cls)

    def init_schedule_policy(self) -> None:
        """Set up the pool, the step policy and the records, beside SGLang's own policy."""
        if not self.is_generation:
            # Embeddings have no decode to mix with; SGLang would decode them in a mixed step.
            self.is_mixed_chunk = False
        # Online requests keep SGLang's default order.
        self.schedule_policy = "fcfs"
        super().init_schedule_policy()
        seams.use_prefill_adder(BlendPrefillAdder)
        if self.device == "cpu":
            use_torch_paging()
        settings: Settings = self.server_args.blendserve
        if settings.overlap == "chunks":
            # SGLang starts PD multiplexing without chunks only; its chunk logic works all the same.
            self.chunked_prefill_size = settings.overlap_chunk
        self.retractions = 0
        ranks, place = self.ranks, seams.ranks(self)
        kv_bytes = self.token_to_kv_pool_allocator.dtype.itemsize
        device = this_device(self.device, settings.device, ranks.size, ranks)
        cost = engine_cost(self.server_args.model_path, device, kv_bytes)
        self.beside = BesideOnline(self, settings.online_targets, cost)
        self.use_pool(engine_pool(cost, self.max_total_num_tokens, place.tp_size))
        self._injected = InjectedFault.asked_for()
        if self._injected is not None:
            self._injected.install(self)
        metrics = self.metrics_collector_context
        collector = metrics.collector if metrics.current_scheduler_metrics_enabled else None
        if sinks := step_sinks(trace_file(settings.trace, place), collector, self):
            self.step_recorder = StepRecorder(self, sinks)
        described = (cost.model.name, device.name, self.max_total_num_tokens)
        logger.info("BlendServe plans for %s on %s, KV cache of %d tokens.", *described)

    @property
    def ranks(self) -> RankGroup:
        """The ranks that must take the same decisions in every step."""
        return RankGroup(seams.ranks(self).attn_tp_size, self.attn_tp_cpu_group)

    def use_pool(self, pool: RequestPool, policy: AnyStepPolicy | None = None) -> None:
        """Take offline requests into ``pool`` and serve them from it.

        ``policy``: the step policy over ``pool``; None for the one that suits the settings.
        """
        settings: Settings = self.server_args.blendserve
        self.pool = pool
        self.offline_receiver = OfflineReceiver(pool)
        if self.blend_cache is not None:
            self.blend_cache.follow(pool)
        traits = EngineTraits(
            device=self.device,
            mixes=self.is_mixed_chunk,
            chunk=self.chunked_prefill_size,
            max_prefill_tokens=self.max_prefill_tokens,
            page_size=self.page_size,
        )
        self.step_policy = policy or engine_policy(pool, settings, traits)
        learners: list[LearnsFromSteps] = [self.beside] if settings.overlap == "off" else []
        one_behind = bool(self.enable_overlap) and self.device != "cpu"
        self.step_timer = StepTimer(pool.cost, learners, one_behind=one_behind)

    # --- arrival -----------------------------------------------------------------------------

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        offline = offline_request(req)
        if offline is not None:
            self.pool.put_back(offline)
            self.retractions += 1
            return
        if not self.offline_receiver.wants(req):
            super()._add_request_to_queue(req, is_retracted)
            return
        if not self._set_or_validate_priority(req):
            return
        self.offline_receiver.take(req)
        req.time_stats.set_wait_queue_entry_time()

    # --- the next batch ------------------------------------------------------------------------

    def _get_new_batch_prefill_raw(
        self, prefill_delayer_single_pass: Any, running_batch: ScheduleBatch
    ) -> tuple[ScheduleBatch | None, ScheduleBatch]:
        stock_chunk, batch, decodes_alone = self.chunked_prefill_size, None, False
        if self.grammar_manager.has_waiting_grammars():  # SGLang looks where it makes a prefill
            for req in self.grammar_manager.get_ready_grammar_requests():
                self._add_request_to_queue(req)
        self.beside.look(running_batch.reqs)
        if self.overlap is None:  # on two lanes, where the decode step begins
            running_batch = self.beside.arrange(running_batch)
        try:
            decodes_alone = self._plan_and_feed(running_batch)
        except Exception as error:  # of any kind: the requests can be served without a plan
            self.chunked_prefill_size = stock_chunk
            self._serve_by_arrival(error)
        waited = len(self.beside.online.of(self.waiting_queue))
        try:
            if decodes_alone or self._must_decode_first(running_batch):
                return None, running_batch
            batch, running_batch = super()._get_new_batch_prefill_raw(
                prefill_delayer_single_pass=prefill_delayer_single_pass,
                running_batch=running_batch,
            )
            return batch, running_batch
        finally:
            self.beside.prefilled = batch is not None
            self.chunked_prefill_size = stock_chunk
            self._take_back()
            none = batch is None and self.chunked_req is None and not decodes_alone
            self.beside.admitted(waited if none else 0)

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        if self._injected is not None:
            self._injected.batch(batch.reqs, self.tokenizer)
        if self.step_recorder is not None and not batch.split_index:  # not again for more layers
            self.step_recorder.launched(batch)
        if self.overlap is None:
            self.beside.launches(self.step_timer.launched(batch))
        return super().run_batch(batch, *args, **kwargs)

    # --- two lanes (``--blendserve-overlap``) ----------------------------------------------------

    def init_pdmux(self) -> None:
        """Make the two lanes, in place of SGLang's stream groups."""
        # Before the model is loaded: its CUDA graphs are captured on these streams.
        self.lanes = make_lanes(*seams.device(self), self.server_args.blendserve.overlap_sm)

    def event_loop_pdmux(self) -> None:
        """Serve on two lanes, in place of SGLang's PD multiplexing loop."""
        trace = trace_file(self.server_args.blendserve.trace, seams.ranks(self))
        rows = None if trace is None else RowFile(lane_path(trace), LaneRow)
        split: str = self.server_args.blendserve.overlap_sm
        self.overlap = OverlapLoop(
            self,
            self.lanes,
            ranks=RankGroup(seams.ranks(self).tp_size, self.tp_cpu_group),
            run_ahead=self.blend_cache is not None,
            turns=Turns({"auto": None, "turns": True}.get(split, False)),
            trace=LaneTrace(self, self.lanes, rows),
        )
        self.overlap.run()

    def get_prefill_adder_class(self) -> type[BlendPrefillAdder]:
        """Return what admits requests to a prefill batch."""
        return BlendPrefillAdder

    def get_num_allocatable_reqs(self, running_bs: int, *args: Any, **kwargs: Any) -> int:
        """Return how many more requests can run, those that join the decodes next counted."""
        joining = 0 if self.overlap is None else self.overlap.joining_requests
        running_bs += joining + self.parked
        return int(super().get_num_allocatable_reqs(running_bs, *args, **kwargs))

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        self.beside.secure_decodes(batch)
        return super().update_running_batch(batch)

    def _collect_inflight_batches(self) -> list[Any]:
        parked = self.beside.parking.reqs
        batches: list[Any] = super()._collect_inflight_batches()
        return [*batches, SimpleNamespace(reqs=parked)] if parked else batches

    def init_invariant_checker(self) -> None:
        super().init_invariant_checker()
        watch = self.invariant_checker
        watch.get_running_batch = self.beside.parking.beside(watch.get_running_batch, watch)

    # --- abort, idle, state ----------------------------------------------------------------------

    def abort_request(self, recv_req: AbortReq) -> None:
        super().abort_request(recv_req)
        if self.overlap is not None:
            self.overlap.abort(recv_req)
        self.beside.parking.abort(recv_req)
        for request in self.offline_receiver.to_abort(recv_req):
            seams.send_abort(self, request.payload, recv_req)
            self.pool.forget(request)

    def pause_generation(self, recv_req: Any) -> Any:
        if recv_req.mode == "retract":
            self.running_batch.reqs = [*self.running_batch.reqs, *self.beside.parking.release()]
        return super().pause_generation(recv_req)

    def on_idle(self) -> None:
        if self.step_recorder is not None:
            self.step_recorder.idle()
        self.step_timer.idle()
        if self.is_fully_idle():
            self.offline_receiver.rest()
            if self.blend_cache is not None:
                check_when_idle(self.blend_cache)
        super().on_idle()

    def is_fully_idle(self, for_health_check: bool = False, **kwargs: bool) -> bool:
        waiting = len(self.pool) > 0 and not kwargs.get("ignore_waiting")
        busy = waiting or (self.overlap is not None and self.overlap.busy)
        busy = busy or self.parked > 0
        return not busy and bool(super().is_fully_idle(for_health_check, **kwargs))

    def get_internal_state(self, recv_req: Any) -> Any:
        output = super().get_internal_state(recv_req)
        try:
            output.internal_state["blendserve"] = self._pool_state()
        except Exception as error:  # as where it plans
            self._serve_by_arrival(error)
            output.internal_state["blendserve"] = self._pool_state()
        return output

    def _pool_state(self) -> dict[str, Any]:
        note_progress(self.pool)  # what has ended since the last pass no longer runs
        return pool_state(self)

    def set_internal_state(self, recv_req: Any) -> Any:
        if told(self.pool, recv_req.server_args):
            return SetInternalStateReqOutput(updated=True)
        return super().set_internal_state(recv_req)
