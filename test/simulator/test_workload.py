"""Workloads: the same bytes for a seed, the density and sharing that were asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from small_workloads import requests

from sglang.srt.blendserve.simulator.length_traces import NAMES, LengthTrace, WorkloadError
from sglang.srt.blendserve.simulator.recipe import Recipe, from_files, reference_cost
from sglang.srt.blendserve.simulator.workload import Workload


def digest(workload: Workload) -> str:
    seen = hashlib.sha256()
    for prompt in workload.prompts():
        seen.update(prompt.tobytes())
    for values in (workload.output_tokens, workload.max_tokens, workload.source):
        seen.update(values.tobytes())
    return seen.hexdigest()


def test_the_same_seed_gives_the_same_bytes() -> None:
    recipe = Recipe.parse("trace1")
    whole = [recipe.workload(2000, seed).replica(8) for seed in (0, 0, 1)]
    assert digest(whole[0]) == digest(whole[1])
    assert digest(whole[0]) != digest(whole[2])


@pytest.mark.parametrize(
    ("name", "density", "sharing"), [("trace1", 1.4, 0.35), ("trace4", 0.9, 0.05)]
)
def test_recipes_reach_density_and_sharing(name: str, density: float, sharing: float) -> None:
    workload = Recipe.parse(name).workload(200_000, 0)
    assert workload.size == 200_000
    assert workload.density(reference_cost()) == pytest.approx(density, rel=0.06)
    assert workload.sharing == pytest.approx(sharing, abs=0.005)
    replica = workload.replica(8)
    assert replica.sharing == pytest.approx(sharing, abs=0.01)
    assert replica.tokens == pytest.approx(workload.tokens / 8, rel=0.02)


def test_a_source_shares_its_system_prompt_and_no_other() -> None:
    workload = Recipe.parse("trace1,system=5").workload(3000, 0)
    starts: dict[int, set[bytes]] = {}
    for prompt, source in zip(workload.prompts(), workload.source.tolist(), strict=True):
        starts.setdefault(source, set()).add(prompt[:5].tobytes())
    assert [len(start) for start in starts.values()] == [1] * len(starts)
    assert len(set.union(*starts.values())) == len(starts)


def test_sharing_is_what_a_prefix_tree_finds(mixed: Workload) -> None:
    from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

    tree = PrefixTree.build(mixed.prompts())
    # Random tokens hardly ever agree by chance.
    saved = int(mixed.prompt_tokens.sum()) - int(tree.segment.sum())
    assert saved == pytest.approx(mixed.shared_tokens, abs=5)
    assert (
        int(mixed.computed_tokens().sum()) == int(mixed.prompt_tokens.sum()) - mixed.shared_tokens
    )


def test_small_mixes_do_not_fail() -> None:
    assert Recipe.parse("trace1").workload(50, 0).size == 50


def test_all_sources_can_be_read() -> None:
    for name in NAMES:
        source = LengthTrace.named(name)
        assert source.prompt_tokens.min() >= 1
        assert source.output_tokens.min() >= 1


def test_trace_files_mix_by_weight(trace_file: Path) -> None:
    other = trace_file.with_name("long.csv")
    other.write_text(
        "input_tokens,output_tokens,prefix_id,prefix_tokens\n90,700,a,40\n80,700,a,40\n"
    )
    workload = from_files([f"{trace_file}:3", f"{other}:1"], 400, 0)
    assert np.bincount(workload.source).tolist() == [300, 100]
    assert workload.shared_tokens == 99 * 40


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("input_tokens\n5\n", "output_tokens"),
        ("input_tokens,output_tokens\n5,x\n", ":2: output_tokens is 'x'"),
        ("input_tokens,output_tokens\n", "no rows"),
        ("input_tokens,output_tokens,prefix_id,prefix_tokens\n5,1,a,5\n", "below input_tokens"),
    ],
)
def test_wrong_traces_are_named(tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(rows)
    with pytest.raises(WorkloadError, match=r".*") as error:
        LengthTrace.from_file(path)
    assert words in str(error.value)


def test_wrong_recipes_are_named() -> None:
    for text, words in (
        ("speed=1", "speed=1"),
        ("density=x", "not a number"),
        ("trace1,system=-1", "negative"),
    ):
        with pytest.raises(WorkloadError, match=words):
            Recipe.parse(text)


def test_replicas_keep_the_sums() -> None:
    whole = requests([(400, 800)] * 500)
    replica = whole.replica(8)
    assert replica.prompt_tokens.mean() == pytest.approx(50, rel=0.02)
    assert (replica.output_tokens - 1).mean() == pytest.approx(799 / 8, rel=0.02)
