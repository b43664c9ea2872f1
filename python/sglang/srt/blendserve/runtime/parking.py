"""Parking: offline requests that decode sit steps out, with their KV cache where it is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang.srt.blendserve.runtime.compat import seams
from sglang.srt.blendserve.runtime.offline_request import offline_request

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import AbortReq
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

_LONGEST = 30.0
"""Seconds after which a parked request goes before those that decode: they take turns so long."""


class Parked(NamedTuple):
    """A request that sits steps out."""

    req: Req
    kv_tokens: int
    """Tokens that have KV once the step in flight is over, if it was in that one."""
    since: float

    @property
    def ready(self) -> bool:
        """Whether the token that it goes on from is known."""
        req = self.req
        return len(req.origin_input_ids) + len(req.output_ids) - 1 == self.kv_tokens


class Parking:
    """Chooses which offline requests decode, and holds the others.

    A parked request is in no batch of SGLang's. It keeps its row, its KV cache and its locks in the
    prefix cache, so it goes on exactly where it was, and loses no token. Requests take part in the
    order in which they began to decode. Who has been parked for longer than 30 seconds goes to the
    front: nobody is parked for ever.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.parked: list[Parked] = []
        self.count = 0
        """How often a request was parked."""
        self._turns: dict[str, int] = {}
        self._next_turn, self._first_turn = 0, -1

    @property
    def reqs(self) -> list[Req]:
        """The requests that are parked and have not ended with the step they were in."""
        return [one.req for one in self.parked if not one.req.finished()]

    def arrange(
        self,
        batch: ScheduleBatch,
        allowed: Callable[[list[float]], int] | None,
        now: float,
    ) -> ScheduleBatch:
        """Let as many offline requests decode as may; return the batch of those that decode.

        Args:
            batch: what decodes, online requests among it.
            allowed: says how many of offline requests with so many KV tokens each may decode, in
                this order; None: all.
            now: seconds from any beginning, the same on all ranks.
        """
        self.parked = [one for one in self.parked if not one.req.finished()]
        if allowed is None and not self.parked:
            self._turns.clear()
            return batch
        decoding = [r for r in batch.reqs if offline_request(r) is not None and not r.finished()]
        if (
            not self.parked
            and allowed is not None
            and allowed([_kv_tokens(req) for req in decoding]) == len(decoding)
        ):
            return batch  # as in most steps of an engine whose decodes are cheap
        back = {one.req.rid: one.req for one in self.parked if one.ready}
        self._put_in_order(decoding, now)
        order = sorted([*decoding, *back.values()], key=self._turn)
        if allowed is not None:
            order = order[: allowed([_kv_tokens(req) for req in order])]
        stay = {req.rid for req in order}
        out = [req for req in decoding if req.rid not in stay and may_sit_out(req)]
        self._park(batch, out, now)
        return self._resume(batch, [req for rid, req in back.items() if rid in stay])

    def release(self) -> list[Req]:
        """Return the parked requests, which others see to from now on."""
        reqs, self.parked = self.reqs, []
        return reqs

    def abort(self, order: AbortReq) -> None:
        """Let parked requests that ``order`` names end with their next step, which comes soon."""
        for req in self.reqs:
            if not req.finished() and (order.abort_all or req.rid.startswith(order.rid)):
                seams.abort_running(req, order)

    def beside(self, running: Callable[[], Any], watch: Any) -> Callable[[], Any]:
        """Return what SGLang's memory checks ``watch`` take for the running batch.

        ``running``: what they took before. Parked requests are among it: they hold slots.
        """

        def with_parked() -> Any:
            batch = running()
            if not self.parked:
                return batch
            reqs = [] if batch is None or batch is watch.get_last_batch() else batch.reqs
            return SimpleNamespace(reqs=[*reqs, *self.reqs], is_empty=lambda: False)

        return with_parked

    def youngest(self, batch: ScheduleBatch | None) -> Req | None:
        """Return the offline request that would be missed least: a parked one, else of ``batch``.

        None if there is none, or if it is all that ``batch`` has.
        """
        if parked := self.reqs:
            return max(parked, key=self._turn)
        reqs = [] if batch is None else [r for r in batch.reqs if offline_request(r) is not None]
        if batch is None or not reqs or len(batch.reqs) < 2:
            return None
        return max(reqs, key=lambda req: (self._turn(req), -len(req.output_ids)))

    def give_back(self, req: Req, batch: ScheduleBatch | None) -> None:
        """Return ``req``, which is parked or in ``batch``, to the pool; its KV slots are free."""
        self.parked = [one for one in self.parked if one.req is not req]
        if batch is not None and req in batch.reqs:
            batch.filter_batch(keep_indices=[i for i, r in enumerate(batch.reqs) if r is not req])
        seams.retract(self._scheduler, req)

    def _turn(self, req: Req) -> int:
        if req.to_finish is not None or not may_sit_out(req):
            return -(1 << 60)  # it was aborted, and ends with its next step; or it decodes anyway
        return self._turns.get(req.rid, self._next_turn)

    def _put_in_order(self, decoding: list[Req], now: float) -> None:
        here = {req.rid for req in decoding} | {one.req.rid for one in self.parked}
        self._turns = {rid: turn for rid, turn in self._turns.items() if rid in here}
        for req in decoding:
            if req.rid not in self._turns:
                self._turns[req.rid] = self._next_turn
                self._next_turn += 1
        late = [one.req for one in self.parked if now - one.since > _LONGEST]
        for req in sorted(late, key=self._turn, reverse=True):
            self._turns[req.rid] = self._first_turn
            self._first_turn -= 1
        if late:
            self.parked = [
                one._replace(since=now) if one.req in late else one for one in self.parked
            ]

    def _park(self, batch: ScheduleBatch, reqs: list[Req], now: float) -> None:
        if not reqs:
            return
        out = {req.rid for req in reqs}
        lengths = batch.seq_lens_cpu.tolist()
        for req, kv_tokens in zip(batch.reqs, lengths, strict=True):
            if req.rid in out:
                self.parked.append(Parked(req, kv_tokens, now))
        self.count += len(reqs)
        stay = [at for at, req in enumerate(batch.reqs) if req.rid not in out]
        batch.filter_batch(keep_indices=stay)

    def _resume(self, batch: ScheduleBatch, reqs: list[Req]) -> ScheduleBatch:
        if not reqs:
            return batch
        come = {req.rid for req in reqs}
        self.parked = [one for one in self.parked if one.req.rid not in come]
        back = seams.decode_batch(self._scheduler, reqs)
        if batch.is_empty():
            back.batch_is_full = batch.batch_is_full
            return back
        batch.merge_batch(back)
        return batch


def may_sit_out(req: Req) -> bool:
    """Return whether a batch of ``req`` can be made anew from what SGLang keeps of it."""
    if req.lora_id is not None or getattr(req, "multimodal_inputs", None) is not None:
        return False
    if getattr(req, "beam_group", None) is not None or req.return_hidden_states:
        return False
    # SGLang counts the tokens for these in the batch.
    given = req.sampling_params
    return not (
        given.frequency_penalty
        or given.presence_penalty
        or given.repetition_penalty != 1
        or given.min_new_tokens
    )


def _kv_tokens(req: Req) -> float:
    return float(len(req.origin_input_ids) + len(req.output_ids))
