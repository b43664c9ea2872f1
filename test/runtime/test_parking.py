"""Offline requests sit steps out and come back, in a batch that is no batch of SGLang's.

pytest test/runtime/test_parking.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_view import plain_request

from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.runtime import parking as module
from sglang.srt.blendserve.runtime.parking import Parking, may_sit_out


class Lengths(list[int]):
    def tolist(self) -> list[int]:
        return [*self]


class Batch:
    """Requests that decode, one token a step."""

    def __init__(self, reqs: list[Any]) -> None:
        self.reqs = reqs
        self.batch_is_full = False

    @property
    def seq_lens_cpu(self) -> Lengths:
        return Lengths(len(r.origin_input_ids) + len(r.output_ids) - 1 for r in self.reqs)

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, *, keep_indices: list[int]) -> None:
        self.reqs = [self.reqs[at] for at in keep_indices]

    def merge_batch(self, other: Batch) -> None:
        self.reqs = [*self.reqs, *other.reqs]


def offline(rid: str, **given: Any) -> Any:
    prompt = [0] * 10
    defaults = {
        "output_ids": [0],
        "blendserve": PoolRequest(rid, None, 100),  # type: ignore[arg-type]
        "lora_id": None,
        "return_hidden_states": False,
    }
    request = plain_request(rid, prompt, **defaults | given)
    for name in ("frequency_penalty", "presence_penalty", "min_new_tokens"):
        setattr(request.sampling_params, name, 0)
    request.sampling_params.repetition_penalty = 1.0
    return request


@pytest.fixture(autouse=True)
def seams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SGLang's part; holds the ids of the requests that were retracted."""
    retracted: list[str] = []
    plain = SimpleNamespace(
        decode_batch=lambda _, reqs: Batch([*reqs]),
        retract=lambda _, req: retracted.append(req.rid),
        abort_running=lambda req, order: setattr(req, "to_finish", order),
    )
    monkeypatch.setattr(module, "seams", plain)
    return retracted


def at_most(number: int) -> Any:
    return lambda kv_tokens: min(number, len(kv_tokens))


def rids(batch: Batch) -> list[str]:
    return [req.rid for req in batch.reqs]


def test_the_youngest_sit_out_and_the_oldest_come_back_first() -> None:
    parking, batch = Parking(None), Batch([offline(f"r{n}") for n in range(6)])
    chat = plain_request("chat", [0], output_ids=[0])
    batch.reqs.append(chat)
    batch = parking.arrange(batch, at_most(2), 0.0)
    assert rids(batch) == ["r0", "r1", "chat"]
    batch = parking.arrange(batch, at_most(4), 1.0)
    assert rids(batch) == ["r0", "r1", "chat", "r2", "r3"]
    batch = parking.arrange(batch, None, 2.0)
    assert sorted(rids(batch)) == ["chat", "r0", "r1", "r2", "r3", "r4", "r5"]
    assert parking.count == 4
    assert not parking.parked


def test_who_is_in_the_step_in_flight_comes_back_when_its_token_is_known() -> None:
    parking, one, other = Parking(None), offline("one"), offline("other")
    batch = Batch([one, other])
    other.output_ids = []  # its token is not known before the step is over
    Batch.seq_lens_cpu = property(lambda self: Lengths([10] * len(self.reqs)))  # type: ignore
    try:
        batch = parking.arrange(batch, at_most(1), 0.0)
        assert rids(batch) == ["one"]
        assert rids(parking.arrange(batch, None, 0.1)) == ["one"]
        other.output_ids = [0]
        assert rids(parking.arrange(batch, None, 0.2)) == ["one", "other"]
    finally:
        Batch.seq_lens_cpu = property(  # type: ignore
            lambda self: Lengths(len(r.origin_input_ids) + len(r.output_ids) - 1 for r in self.reqs)
        )


def test_nobody_is_parked_for_ever() -> None:
    parking, batch = Parking(None), Batch([offline(f"r{n}") for n in range(5)])
    decoded: dict[str, float] = {}
    for second in range(400):
        batch = parking.arrange(batch, at_most(1), float(second))
        assert len(batch.reqs) == 1
        decoded[batch.reqs[0].rid] = second
    # Five take turns of 30 seconds.
    assert min(decoded.values()) > 400 - 5 * 31 - 1


def test_who_has_ended_or_was_aborted_does_not_stay_parked() -> None:
    parking, reqs = Parking(None), [offline(f"r{n}") for n in range(4)]
    batch = parking.arrange(Batch([*reqs]), at_most(1), 0.0)
    reqs[3].finished = lambda: True
    parking.abort(SimpleNamespace(abort_all=False, rid="r2"))
    batch = parking.arrange(batch, at_most(1), 1.0)
    assert rids(batch) == ["r2"], "it ends with its next step"
    assert sorted(req.rid for req in parking.reqs) == ["r0", "r1"]


@pytest.mark.parametrize(
    "given",
    [
        {"lora_id": "adapter"},
        {"multimodal_inputs": object()},
        {"beam_group": object()},
        {"return_hidden_states": True},
    ],
)
def test_who_cannot_be_put_together_again_decodes_on(given: dict[str, Any]) -> None:
    odd = offline("odd", **given)
    assert not may_sit_out(odd)
    batch = Parking(None).arrange(Batch([offline("r0"), offline("r1"), odd]), at_most(1), 0.0)
    assert rids(batch) == ["odd"]


def test_penalties_are_counted_in_the_batch() -> None:
    odd = offline("odd")
    odd.sampling_params.presence_penalty = 0.5
    assert not may_sit_out(odd)


def test_the_youngest_is_given_back_and_parked_ones_before_others(seams: list[str]) -> None:
    parking = Parking(None)
    batch = parking.arrange(Batch([offline(f"r{n}") for n in range(4)]), at_most(2), 0.0)
    for expected in ("r3", "r2", "r1"):
        req = parking.youngest(batch)
        assert req is not None
        assert req.rid == expected
        parking.give_back(req, batch)
    assert parking.youngest(batch) is None, "it is all there is"
    assert parking.youngest(None) is None
    assert seams == ["r3", "r2", "r1"]
    assert rids(batch) == ["r0"]


def test_who_ended_with_the_step_in_flight_is_not_given_back() -> None:
    parking = Parking(None)
    batch = parking.arrange(Batch([offline(f"r{n}") for n in range(3)]), at_most(1), 0.0)
    for req in parking.reqs:
        req.finished = lambda: True
    assert parking.reqs == []
    assert parking.youngest(batch) is None


def test_memory_checks_see_the_parked_ones() -> None:
    parking, last = Parking(None), Batch([])
    batch = parking.arrange(Batch([offline("r0"), offline("r1")]), at_most(1), 0.0)
    watch = SimpleNamespace(get_last_batch=lambda: last)
    assert rids(parking.beside(lambda: batch, watch)()) == ["r0", "r1"]
    last = batch  # it is counted as that already
    assert rids(parking.beside(lambda: batch, watch)()) == ["r1"]
    assert [req.rid for req in parking.release()] == ["r1"]
    assert parking.beside(lambda: batch, watch)() is batch


@given(steps=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.booleans()), max_size=40))
def test_everybody_is_either_decoding_or_parked(steps: list[tuple[int, int, bool]]) -> None:
    parking, batch, there = Parking(None), Batch([]), set[str]()
    for now, (allowed, come, ends) in enumerate(steps):
        new = [offline(f"r{now}-{n}") for n in range(come)]
        batch.reqs = [*batch.reqs, *new]
        there |= {req.rid for req in new}
        batch = parking.arrange(batch, None if allowed == 8 else at_most(max(allowed, 1)), now)
        decoding, parked = rids(batch), [req.rid for req in parking.reqs]
        assert sorted([*decoding, *parked]) == sorted(there)
        assert decoding or not there
        for req in batch.reqs:
            req.output_ids = [*req.output_ids, 0]
        if ends and batch.reqs:
            there.discard(batch.reqs.pop().rid)
