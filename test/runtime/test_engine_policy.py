"""What the settings and the engine make of pool, step policy and state, without an engine.

pytest test/runtime/test_engine_policy.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plain_view import offline, plain_request
from pools import COST

from sglang.srt.blendserve.plan.scanner import Side
from sglang.srt.blendserve.policy.marginal_pace import MarginalPace
from sglang.srt.blendserve.policy.named import AnyStepPolicy
from sglang.srt.blendserve.policy.pace import FixedPace
from sglang.srt.blendserve.policy.paper import PaperPolicy
from sglang.srt.blendserve.runtime.engine_policy import EngineTraits, engine_policy
from sglang.srt.blendserve.runtime.engine_pool import engine_cost, engine_pool, planning_passes
from sglang.srt.blendserve.runtime.engine_state import engine_state
from sglang.srt.blendserve.runtime.overlap.whole_chunks import WholeChunks
from sglang.srt.blendserve.runtime.ranks import RankGroup
from sglang.srt.blendserve.settings import Settings

GPU = EngineTraits(device="cuda", mixes=True, chunk=2048, max_prefill_tokens=16_384, page_size=16)


def policy_for(engine: EngineTraits, **settings: Any) -> AnyStepPolicy:
    chosen = Settings(**settings)
    return engine_policy(engine_pool(COST, 5000, ranks=1), chosen, engine)


def test_a_cache_of_smaller_elements_costs_less_memory_time(tiny_model: Path) -> None:
    full, fp8 = (engine_cost(str(tiny_model), COST.device, size).model for size in (4, 1))
    assert full.kv_bytes_per_token == 4 * fp8.kv_bytes_per_token
    assert full.weight_bytes == fp8.weight_bytes


@pytest.mark.parametrize(
    ("engine", "pace"),
    [
        (GPU, MarginalPace),
        (replace(GPU, mixes=False), FixedPace),
        (replace(GPU, device="cpu"), FixedPace),
    ],
    ids=["mixed chunks", "prefill and decode apart", "cpu"],
)
def test_the_automatic_pace_is_that_of_the_engine(engine: EngineTraits, pace: type) -> None:
    assert isinstance(policy_for(engine).pace, pace)


def test_a_pace_that_is_asked_for_is_taken() -> None:
    cpu = replace(GPU, device="cpu")
    assert isinstance(policy_for(cpu, pace="marginal").pace, MarginalPace)
    assert isinstance(policy_for(cpu, pace="paper"), PaperPolicy)


@pytest.mark.parametrize(
    ("engine", "settings", "tokens"),
    [
        (GPU, {}, (16, 2048)),
        (replace(GPU, mixes=False), {}, (2048, 2048)),
        (replace(GPU, mixes=False, chunk=None), {}, (16_384, 16_384)),
        (GPU, {"overlap": "chunks", "pace": "marginal"}, (16, 2048)),
    ],
    ids=["mixed chunks", "apart", "whole prompts", "two lanes"],
)
def test_a_prefill_that_holds_up_decodes_is_a_full_chunk(
    engine: EngineTraits, settings: dict[str, Any], tokens: tuple[int, int]
) -> None:
    policy = policy_for(engine, **settings)
    assert (policy.min_tokens, policy.max_tokens) == tokens
    assert policy.whole_prompts == (engine.chunk is None)


def test_two_lanes_prefill_in_whole_chunks() -> None:
    policy = policy_for(GPU, overlap="chunks", overlap_chunk=512)
    assert policy.pace == WholeChunks(512)
    assert policy.max_tokens == 512


def test_a_plan_of_more_requests_is_given_more_passes() -> None:
    assert planning_passes(0) == 16
    assert planning_passes(100_000) == 216


def state_of(chunked: Any) -> Any:
    running = [offline(30, 4, Side.MEMORY), plain_request("chat", [0] * 7, output_ids=[0] * 2)]
    return engine_state(
        running,
        running[1:],
        chunked,
        used_slots=40,
        free_requests=6,
        online_growth_ratio=0.5,
        cached_tokens=lambda request: 3,
    )


def test_the_state_counts_what_decodes_and_how_far_online_requests_may_grow() -> None:
    state = state_of(None)
    assert (state.running, state.kv_tokens) == (2, 34 + 9)
    assert (state.used_slots, state.free_requests) == (40, 6)
    assert state.online_growth == 0.5 * (8 - 2)
    assert (state.chunk, state.chunk_tokens) == (None, 0)
    assert state.cached_tokens(None) == 3


def test_of_a_partly_computed_prompt_the_rest_is_to_compute() -> None:
    chunked = offline(30, 0, Side.COMPUTE)
    chunked.full_untruncated_fill_ids = [0] * 30
    chunked.prefix_indices, chunked.prefix_len = [0] * 12, 12  # SGLang 0.5.17, 0.5.23
    state = state_of(chunked)
    assert (state.chunk, state.chunk_tokens) == (chunked.blendserve, 18)


def test_a_partly_computed_online_prompt_is_none_of_the_policys() -> None:
    chunked = plain_request("chat", [0] * 30)
    assert (state_of(chunked).chunk, state_of(chunked).chunk_tokens) == (None, 0)


def test_a_rank_that_is_alone_agrees_with_itself() -> None:
    assert RankGroup().of_first(1.5, 2.0) == (1.5, 2.0)
    assert RankGroup().all(True, False) == (True, False)
