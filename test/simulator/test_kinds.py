"""Workloads that users have, and the order of a file."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sglang.srt.blendserve.simulator.kinds import KINDS, make_workload
from sglang.srt.blendserve.simulator.length_traces import WorkloadError


@pytest.mark.parametrize("name", [*KINDS, "trace1"])
def test_same_requests_in_every_order(name: str) -> None:
    """An order changes nothing but the order; the same seed gives the same requests."""
    shuffled, again, by_source, interleaved = (
        make_workload(name, 2000, 3, order)
        for order in ("shuffled", "shuffled", "sorted", "interleaved")
    )
    assert np.array_equal(shuffled.prompt_tokens, again.prompt_tokens)
    for other in (by_source, interleaved):
        assert other.size == 2000
        assert other.tokens == shuffled.tokens
        assert other.sharing == pytest.approx(shuffled.sharing)
        assert sorted(other.prefix) == sorted(shuffled.prefix)
    assert (np.diff(by_source.source) >= 0).all()


def test_documents_with_their_questions() -> None:
    """Prompts are a document and a question; a file has them document by document, question by
    question or mixed."""
    workload = make_workload("documents", 3000, 0, "sorted")
    number, uses = np.unique(workload.prefix, return_counts=True)
    assert np.array_equal(np.unique(workload.prefix, return_index=True)[1], np.cumsum(uses) - uses)
    assert uses[:-1].min() >= 3
    assert uses.max() <= 20
    assert 500 <= workload.prefix_tokens.min() <= workload.prefix_tokens.max() <= 4000
    assert workload.sharing > 0.8
    prompts = workload.prompts()
    assert np.array_equal(
        prompts[0][: workload.prefix_tokens[0]], prompts[1][: workload.prefix_tokens[0]]
    )
    by_question = make_workload("documents", 3000, 0, "interleaved")
    assert np.array_equal(by_question.prefix[: number.size], number)
    assert not np.array_equal(make_workload("documents", 3000, 0).prefix, by_question.prefix)


def test_an_agent_s_step_begins_with_the_one_before() -> None:
    workload = make_workload("agents", 500, 1, "sorted")
    prompts = workload.prompts()
    run = np.flatnonzero(workload.prefix == workload.prefix[0])
    assert run.size >= 4
    shared = workload.shared_start
    assert shared[run[0]] == workload.system_tokens == 1500
    for one, next_one in pairwise(run):
        assert shared[next_one] > prompts[one].size
        length = shared[one]
        assert np.array_equal(prompts[next_one][:length], prompts[one][:length])


def test_reasoning_shares_nothing_and_answers_at_length() -> None:
    workload = make_workload("reasoning", 2000, 0)
    assert workload.sharing == 0
    assert workload.output_tokens.mean() > 20 * workload.prompt_tokens.mean()


def test_fields_change_ranges() -> None:
    workload = make_workload("documents,tokens=600,uses=6,own=20-30", 300, 0)
    assert set(workload.prefix_tokens) == {600}
    assert np.unique(workload.prefix).size == 50


def test_traces_by_name_and_joined() -> None:
    both = make_workload("sharegpt+mmlu", 1001, 3)
    assert both.sources == ("sharegpt", "mmlu")
    assert np.bincount(both.source).tolist() in ([500, 501], [501, 500])
    again = make_workload("sharegpt+mmlu", 1001, 3)
    assert (both.prompt_tokens == again.prompt_tokens).all()
    assert (both.source[:500] == 0).any()
    assert (both.source[:500] == 1).any()  # shuffled
    [name] = make_workload("azure_code", 50, 0).sources
    assert name == "azure_code"


@pytest.mark.parametrize(
    ("text", "order", "says"),
    [
        ("documents,tokens=big", "shuffled", "workload field 'tokens=big'"),
        ("documents,uses=9-3", "shuffled", "the smaller number first"),
        ("documents,density=1", "shuffled", "workload field 'density=1'"),
        ("azure_cod", "shuffled", "'azure_cod' is none of burstgpt, azure_conv"),
        ("azure_code+nope", "shuffled", "'nope' is none of"),
        ("azure_code+", "shuffled", "'nothing' is none of"),
        ("azure_code,tokens=5", "shuffled", "'tokens=5' is none of"),
        ("documents+azure_code", "shuffled", "nor is 'documents\\+azure_code' one of documents"),
        ("trace1", "random", "order 'random': choose from shuffled"),
    ],
)
def test_what_is_wrong_is_named(text: str, order: str, says: str) -> None:
    with pytest.raises(WorkloadError, match=says):
        make_workload(text, 100, 0, order)
