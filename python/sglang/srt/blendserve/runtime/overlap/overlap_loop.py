"""The scheduler's loop with prefill and decode running at once.

A decode step and a prefill batch are in flight side by side. Whichever ends is processed and its
lane gets the next one; a decode never waits for a prefill, whose requests join the decodes at the
next step after they are through. A prefill batch is launched a few layers at a time
(`prefill_pieces`).

``layers``: prompts are computed whole, as SGLang's PD multiplexing does. ``chunks``: a prompt may
be cut after `--blendserve-overlap-chunk` tokens, as with chunked prefill.

The next decode step is launched before the results of the last one are processed, where that is
possible (`work.may_run_ahead`), so that the decode lane does not wait for the host. As with
SGLang's overlap schedule, a request that has ended then takes part in one step more. Its slots are
free again while that step still runs: a prefill that begins meanwhile is ordered behind the step.

Everything that both lanes read (slot lists, request table) is written on the scheduler's own
stream, between launches; see `lanes`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sglang.srt.environ import envs
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch
from sglang.srt.multiplex.pdmux_context import set_current_stream_idx

from sglang.srt.blendserve.cost.step_times import StepLoad
from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.overlap.division import Division
from sglang.srt.blendserve.runtime.overlap.lane_trace import LaneTrace
from sglang.srt.blendserve.runtime.overlap.lanes import Lanes
from sglang.srt.blendserve.runtime.overlap.prefill_pieces import PrefillPieces
from sglang.srt.blendserve.runtime.overlap.turns import Turns
from sglang.srt.blendserve.runtime.overlap.work import (
    LaunchedBatch,
    Load,
    decode_load,
    may_run_ahead,
    prefill_load,
)
from sglang.srt.blendserve.runtime.ranks import RankGroup
from sglang.srt.blendserve.runtime.view import LaneScheduler

logger = logging.getLogger(__name__)

_HARMLESS = (TokenizedGenerateReqInput, BatchTokenizedGenerateReqInput, AbortReq)
"""Messages that may be handled while something is in flight. Others (flushing the cache, new
weights, pausing) wait until nothing is."""


class OverlapLoop:
    """Runs a scheduler's batches on two lanes."""

    def __init__(
        self,
        scheduler: LaneScheduler,
        lanes: Lanes,
        *,
        ranks: RankGroup,
        run_ahead: bool,
        turns: Turns,
        trace: LaneTrace,
    ) -> None:
        """``ranks``: those that run the same loop. ``run_ahead``: whether the next decode step may
        be launched before the results of the last one are processed; the prefix cache must then
        bear requests that have ended and are in one step more. ``turns``: decides whether the lanes
        run in turns."""
        self.scheduler = scheduler
        self.lanes = lanes
        self.ranks = ranks
        self.trace = trace
        self.division = Division(lanes, turns)
        self.prefill: LaunchedBatch | None = None
        self.decode: LaunchedBatch | None = None
        self.joining: list[ScheduleBatch] = []
        """Prefilled batches whose requests decode from the next step on."""
        self._no_prefill = True
        """Whether there was nothing to prefill when last looked."""
        self._held = False
        """Whether decode waits for the memory that the prefill in flight may turn out to need."""
        self._prefill_is_next = False
        """Whether it is prefill's turn, where the lanes run in turns."""
        self._pieces = PrefillPieces(scheduler, lanes)
        self._ahead = run_ahead
        if run_ahead:
            # Late results of a request that has ended are dropped, as in SGLang's overlap schedule.
            scheduler.batch_result_processor = replace(
                scheduler.batch_result_processor, enable_overlap=True
            )
        self.decode_steps = self.prefill_batches = self.steps_beside = self.steps_ahead = 0

    # --- state the scheduler asks for ------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is in flight or about to join the decodes."""
        return self.prefill is not None or self.decode is not None or bool(self.joining)

    @property
    def joining_requests(self) -> int:
        """Requests that are prefilled and not yet in the running batch."""
        return sum(len(batch.reqs) for batch in self.joining)

    def prefilled(self) -> list[Req]:
        """Return the requests whose prompts are being computed, or were and do not decode yet."""
        batches = [*self.joining] + ([] if self.prefill is None else [self.prefill.batch])
        return [req for batch in batches for req in batch.reqs]

    def state(self) -> dict[str, Any]:
        """Return counts and learned speeds, for ``get_server_info``."""
        return {
            "decode_steps": self.decode_steps,
            "decode_steps_beside_prefill": self.steps_beside,
            "decode_steps_ahead": self.steps_ahead,
            "prefill_batches": self.prefill_batches,
            **self.division.state(),
        }

    def abort(self, message: AbortReq) -> None:
        """Mark the named requests that SGLang does not know of: in the prefill lane and joining."""
        for req in self.prefilled():
            matches = message.abort_all or req.rid.startswith(message.rid)
            if matches and not req.finished() and req is not self.scheduler.chunked_req:
                req.to_finish = FINISH_ABORT()

    # --- the loop --------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self) -> None:
        """Serve until the scheduler is told to exit."""
        scheduler = self.scheduler
        while not scheduler.gracefully_exit:
            messages = seams.receive(scheduler)
            if any(not isinstance(message, _HARMLESS) for message in messages):
                while self.prefill is not None or self.decode is not None:
                    self._wait(go_on=False)
                self._join()
            scheduler.process_input_requests(messages)
            if not scheduler._engine_paused:
                if self._in_turns and self._prefill_is_next:
                    self._start_prefill()
                self._start_decode()
                self._start_prefill()
            if self.prefill is not None or self.decode is not None:
                self._wait(go_on=self._ahead and not scheduler._engine_paused)
            elif not scheduler._engine_paused:
                self.trace.flush()
                seams.rest(scheduler)

    def _wait(self, *, go_on: bool) -> None:
        """Until a decode step or a prefill batch is over; process it.

        ``go_on``: whether another decode step may be launched.
        """
        while True:
            self._launch_prefill()
            decode, prefill = self.decode, self.prefill
            decode_done = decode is not None and decode.works[0].done()
            piece_done = prefill is not None and prefill.works[0].done()
            decode_done, piece_done = self.ranks.all(decode_done, piece_done)
            if piece_done:
                assert prefill is not None
                prefill.seconds += prefill.works.popleft().seconds()
                if not prefill.works and not prefill.layers_left:
                    self._end_prefill(prefill)
            if decode_done:
                assert decode is not None
                self.decode = None
                if go_on and not (self._in_turns and self._prefill_waits):
                    self._run_ahead()
                self._end_decode(decode)
            if decode_done or (prefill is not None and self.prefill is None):
                return

    # --- decode ----------------------------------------------------------------------------------

    def _join(self) -> None:
        scheduler = self.scheduler
        for batch in self.joining:
            if scheduler.running_batch.is_empty():
                scheduler.running_batch = batch
            else:
                scheduler.running_batch.merge_batch(batch)
        self.joining.clear()

    def _start_decode(self, *, ahead: bool = False) -> None:
        """``ahead``: the results of the last step are not processed yet."""
        scheduler = self.scheduler
        if self.decode is not None:
            return
        self._join()
        batch = scheduler.running_batch
        batch.filter_batch()
        if not ahead:
            scheduler.beside.look(batch.reqs)
            scheduler.running_batch = batch = scheduler.beside.arrange(batch)
        if self.prefill is not None and not batch.is_empty() and not ahead:
            self._choose(decode_load(batch, scheduler.pool.cost))
            if self._in_turns:
                return
        # With too little memory SGLang gives requests back, and ends the last one with an error.
        # Before that, see what the prefill in flight becomes: it can be given back as well.
        self._held = (
            not batch.is_empty() and self.prefill is not None and not batch.check_decode_mem()
        )
        if self._held:
            return
        scheduler.running_batch = batch = scheduler.update_running_batch(batch)
        if batch.is_empty() or batch.is_prefill_only:
            return
        load = decode_load(batch, scheduler.pool.cost)
        group = self._group_beside(load)
        set_current_stream_idx(group)
        scheduler.tp_worker.model_runner.update_decode_attn_backend(group)
        scheduler.last_batch = batch
        self.decode = LaunchedBatch(batch, load, group, self.prefill is not None, self.trace.now())
        self.decode.result, work = self.lanes.decode.launch(
            group, partial(scheduler.run_batch, batch)
        )
        self.decode.batch = batch.copy()
        self.decode.works.append(work)

    def _group_beside(self, load: Load) -> int:
        """The stream group of a decode step of this ``load``."""
        if self.prefill is None and self._no_prefill:
            return self.lanes.alone
        group = self._choose(load)
        return self.lanes.alone if self._in_turns and self.prefill is None else group

    def _choose(self, load: Load) -> int:
        """Return the division for a decode step of this ``load``, all ranks running in turns or
        none."""
        pool, turns = self.scheduler.pool, self.division.turns
        beside = None if self.prefill is None else self.prefill.load
        group = self.division.choose(pool.current.rest, load, beside, pool.cost)
        turns.set(self.ranks.of_first(float(turns.taken))[0] > 0)
        return group

    @property
    def _in_turns(self) -> bool:
        return self.division.turns.taken

    @property
    def _prefill_waits(self) -> bool:
        """Whether there may be something to prefill."""
        scheduler = self.scheduler
        chunked = scheduler.chunked_req is not None
        return chunked or len(scheduler.pool) > 0 or bool(scheduler.waiting_queue)

    def _run_ahead(self) -> None:
        """The next step, before the results of the last one are processed."""
        self._join()
        batch = self.scheduler.running_batch
        batch.filter_batch()
        # With too little memory requests are given back, which the results must precede.
        if may_run_ahead(batch) and batch.check_decode_mem():
            self._start_decode(ahead=True)
            self.steps_ahead += self.decode is not None

    def _end_decode(self, ended: LaunchedBatch) -> None:
        scheduler = self.scheduler
        scheduler.process_batch_result(ended.batch, ended.result)
        if self.decode is not None and any(req.finished() for req in ended.batch.reqs):
            self._pieces.fence = self.decode.works[0]
        ended.seconds = ended.works.popleft().seconds()
        decoded = StepLoad(0.0, ended.load.tokens, ended.load.kv_tokens)
        scheduler.beside.add(decoded, ended.seconds)
        beside = ended.beside and self.prefill is not None
        self.decode_steps += 1
        self.steps_beside += beside
        self._prefill_is_next = True
        if beside:
            self.division.decoded(ended)
        elif not ended.beside and self.prefill is None:
            self.division.decoded_alone(ended)
        self.trace.add("decode", ended)
        if (
            envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get()
            and not self.busy
            and scheduler.chunked_req is None
        ):
            scheduler.invariant_checker.self_check_during_busy()

    # --- prefill ---------------------------------------------------------------------------------

    def _start_prefill(self) -> None:
        scheduler = self.scheduler
        if self.prefill is not None or self._held or (self._in_turns and self.decode is not None):
            return
        scheduler.process_pending_chunked_abort()
        seams.abort_late(scheduler)
        chunked: Req | None = scheduler.chunked_req
        if chunked is not None and seams.has_uncached_chunk(chunked):
            scheduler.stash_chunked_request(chunked)
        plan = scheduler.get_new_batch_prefill(scheduler.running_batch)
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        self._no_prefill = batch is None
        if batch is None:
            return
        load = prefill_load(batch, scheduler.pool.cost)
        beside = self.decode is not None
        self.prefill = LaunchedBatch(batch, load, -1, beside, self.trace.now())
        self.prefill.layers_left = self._pieces.prepare(batch)
        self._launch_prefill()

    def _launch_prefill(self) -> None:
        """Keep the prefill stream supplied with layers."""
        if self.prefill is not None:
            idle = self.scheduler.running_batch.is_empty()
            alone = idle or (self._in_turns and self.decode is None)
            self._pieces.supply(self.prefill, 0 if alone else self.division.group)

    def _end_prefill(self, ended: LaunchedBatch) -> None:
        self.prefill, self._prefill_is_next = None, False
        scheduler, batch = self.scheduler, ended.batch
        unfinished = [r for r in (scheduler.chunked_req, batch.chunked_req) if r is not None]
        scheduler.process_batch_result(batch, ended.result)
        self.prefill_batches += 1
        prefilled = StepLoad(ended.load.compute, prompt_tokens=ended.load.tokens)
        scheduler.beside.add(prefilled, ended.seconds)
        self.trace.add("prefill", ended)
        self.division.prefilled(ended)
        batch.split_index, batch.split_forward_batch = 0, None  # it decodes from here on
        requests = len(batch.reqs)
        seams.leave_out(batch, unfinished)
        if len(batch.reqs) < requests:
            scheduler.running_batch.batch_is_full = False
        if not batch.is_empty():
            self.joining.append(batch)
