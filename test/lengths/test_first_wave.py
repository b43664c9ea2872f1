"""The sample of requests that runs first: where it is taken from.

pytest test/lengths/test_first_wave.py
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import Pool, pools

from sglang.srt.blendserve.lengths.first_wave import sample_wave
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree


def documents(count: int, questions: int, tokens: int) -> PrefixTree:
    """So many documents with so many questions of eight tokens on each."""
    rng = np.random.default_rng(5)
    prompts = []
    for _ in range(count):
        text = rng.integers(0, 30_000, tokens)
        prompts += [np.append(text, rng.integers(0, 30_000, 8)) for _ in range(questions)]
    return PrefixTree.build(prompts)


def twice(tree: PrefixTree, wave: list[int]) -> int:
    """Tokens of prefixes that some of the wave and some of the others begin with, by hand."""
    tokens = 0
    for node in range(1, tree.nodes):
        below = set(tree.leaf_requests[tree.leaf_start[node] : tree.leaf_end[node]].tolist())
        if below & {*wave} and below - {*wave}:
            tokens += int(tree.segment[node])
    return tokens


def known_in_part(tree: PrefixTree) -> np.ndarray:
    return np.arange(tree.requests) % 3 == 0


@given(pools(least=1), st.floats(0, 1))
def test_each_request_is_drawn_once_and_those_of_known_length_never(
    pool: Pool, fraction: float
) -> None:
    tree = PrefixTree.build(pool.prompts, pool.namespaces)
    known = known_in_part(tree)
    wave = sample_wave(tree, known, fraction).tolist()
    assert len({*wave}) == len(wave)
    assert not known[wave].any()
    assert len(wave) == (int((~known).sum()) if fraction else 0)  # no more than 32 there are


@pytest.mark.parametrize("tokens", [1, 4, 100])
@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.3, 0.999, 1.0])
def test_as_many_are_drawn_as_are_asked_for(tokens: int, fraction: float) -> None:
    tree = documents(90, 11, tokens)
    known = known_in_part(tree)
    unknown = int((~known).sum())
    wave = sample_wave(tree, known, fraction).tolist()
    assert len({*wave}) == len(wave)
    assert not known[wave].any()
    assert len(wave) == (min(unknown, max(32, int(np.ceil(fraction * unknown)))) if fraction else 0)


def test_long_prefixes_are_sampled_with_their_neighbours() -> None:
    """One by one, the sample would compute 100 of 1,000 documents for itself alone."""
    tree = documents(1000, 10, 1000)
    wave = sample_wave(tree, np.zeros(10_000, dtype=np.bool_)).tolist()
    assert len(wave) == 100
    assert len({request // 10 for request in wave}) <= 27  # nine runs of twelve at most
    assert twice(tree, wave) <= 18_000  # at most the two ends of a run each
    # Each place is begun before one is gone on with, so that their prefixes are computed at once.
    ranks = np.argsort(tree.leaf_requests)[wave]
    assert np.diff(np.sort(ranks[:9])).min() > 500
    assert abs(int(ranks[1]) - int(ranks[0])) > 4000


def test_every_large_part_of_the_pool_is_sampled() -> None:
    """Twenty collections of fifty documents each: eight places do not reach all of them."""
    rng = np.random.default_rng(6)
    prompts = []
    for collection in range(20):
        for _ in range(50):
            text = np.append(np.full(20, collection), rng.integers(100, 30_000, 1000))
            prompts += [np.append(text, rng.integers(100, 30_000, 8)) for _ in range(10)]
    wave = sample_wave(PrefixTree.build(prompts), np.zeros(10_000, dtype=np.bool_))
    assert (np.bincount(wave // 500, minlength=20) >= 4).all()
    assert len({request // 10 for request in wave.tolist()}) <= 27 + 20


def test_short_prefixes_are_sampled_one_by_one() -> None:
    tree = documents(1000, 10, 1)
    wave = sample_wave(tree, np.zeros(10_000, dtype=np.bool_)).tolist()
    assert len({request // 10 for request in wave}) >= 90


def test_a_prefix_that_all_share_costs_nothing() -> None:
    tree = documents(1, 10_000, 1000)
    wave = sample_wave(tree, np.zeros(10_000, dtype=np.bool_))
    ranks = np.sort(np.argsort(tree.leaf_requests)[wave])
    assert wave.size == 100
    assert np.diff(ranks).min() > 50


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="fraction"):
        sample_wave(documents(1, 2, 1), np.zeros(2, dtype=np.bool_), 1.5)
