"""How the KV memory is divided between the two sides of the scan.

pytest test/policy/test_split.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import COST

from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.policy.split import MemorySplit, memory_partition
from sglang.srt.blendserve.policy.tuning import Tuning
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool


def test_the_papers_partition_example() -> None:
    """Paper 5.3: 60 GB and densities 1.27 / 3.73 / 0.096 give 19.3 and 40.7 GB."""
    share = memory_partition(root=1.27, compute_side=3.73, memory_side=0.096)
    assert 60 * share == pytest.approx(19.3, abs=0.1)
    assert 60 * (1 - share) == pytest.approx(40.7, abs=0.1)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0, 100))
def test_partition_is_a_share(root: float, compute_side: float, memory_side: float) -> None:
    assert 0 <= memory_partition(root, compute_side, memory_side) <= 1


def test_partition_without_a_difference_or_without_decode() -> None:
    assert memory_partition(1.0, 2.0, 2.0) == 0.5
    assert memory_partition(1.0, float("inf"), 0.1) == 0.0


def test_the_share_stays_within_its_bounds_and_grows_where_compute_is_scarce() -> None:
    pool = RequestPool(COST, 4000)
    for number in range(64):
        size, cap = (200, 2) if number % 2 else (10, 400)
        prompt = np.full(size, number, dtype=np.int32)
        pool.add(PoolRequest(f"r{number}", prompt, cap, known_length=True))
    pool.plan_if_due(quiet=True)
    tuning = Tuning(least_share=0.2, most_share=0.4, scarce_share=0.1)
    shares = {}
    for name, rest, scarcity in (
        ("memory-bound", RemainingWork(0.0, 1.0), 0.0),
        ("in between", RemainingWork(0.0, 1.0), 2.0),
        ("compute-bound", RemainingWork(1e9, 1.0), 2.0),
    ):
        split = MemorySplit(tuning)
        split.divide(pool.current, rest, scarcity)
        shares[name] = split.share
    assert shares == pytest.approx({"memory-bound": 0.2, "in between": 0.3, "compute-bound": 0.4})


def test_nothing_is_kept_where_the_sides_are_alike() -> None:
    """Long answers to short questions, whose prompts differ a little."""
    pool = RequestPool(COST, 4000)
    for number in range(64):
        prompt = np.full(20 + number % 9, number, dtype=np.int32)
        pool.add(PoolRequest(f"r{number}", prompt, 2000, known_length=True))
    pool.plan_if_due(quiet=True)
    shares = []
    for apart in (2.0, 1.0):
        split = MemorySplit(Tuning(apart=apart))
        split.divide(pool.current, RemainingWork(1.0, 10.0), 0.1)
        shares.append(split.share)
    assert shares[0] < 0.05 < shares[1]


def test_nothing_is_kept_for_a_side_where_nothing_waits() -> None:
    """All have started, and those that the engine gave back are to have the whole memory."""
    pool = RequestPool(COST, 4000)
    for number in range(8):
        prompt = np.full(20, number, dtype=np.int32)
        pool.add(PoolRequest(f"r{number}", prompt, 2000, known_length=True))
    pool.plan_if_due(quiet=True)
    for request in [*pool.table.all]:
        pool.start(request)
    split = MemorySplit(Tuning())
    split.divide(pool.current, RemainingWork(1.0, 10.0), 2.0)
    assert split.share == 0


def test_the_memory_is_divided_in_the_first_step_and_then_every_few() -> None:
    split = MemorySplit(Tuning(split_steps=4))
    assert [split.due() for _ in range(9)] == [step % 4 == 0 for step in range(9)]
