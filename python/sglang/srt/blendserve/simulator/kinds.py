"""Workloads that users have: documents with questions, many prefixes, agents, long reasoning.

    documents    documents of 500 to 4,000 tokens, 3 to 20 questions on each
    prefixes     few-shot prefixes of 500 to 2,500 tokens, 5 to 40 requests on each
    agents       runs of 4 to 24 steps; a step's prompt is the one before it, its answer and what
                 a tool returned
    reasoning    questions of a few dozen tokens, answers of thousands

Their answers' lengths are real (``data/NOTICE.md``). Sizes of documents, prefixes and tool results
and how often each is used are drawn evenly from a range, and are this project's choice. Fields
after the name change a range: ``documents,tokens=500-4000,uses=3-20``.

`make_workload` takes all names, those of `recipe` and of traces too, and puts a workload in the
order of a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sglang.srt.blendserve.simulator.length_traces import NAMES, LengthTrace, WorkloadError
from sglang.srt.blendserve.simulator.recipe import PAPER_TRACES, Recipe, from_traces
from sglang.srt.blendserve.simulator.workload import Workload, cap_for

ORDERS = ("shuffled", "sorted", "interleaved", "jobs")
"""Orders of a file. ``sorted``: source after source, prefix after prefix. ``interleaved``: of each
prefix its first request, then of each its second: question by question. ``jobs``: sorted, and cut
into jobs of a hundred requests that come in any order."""

_JOB_REQUESTS = 100

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests that share prefixes of one kind; ranges are inclusive, in tokens."""

    tokens: Range
    """Length of a prefix; of agents, of what a step adds to its run."""
    uses: Range
    """Requests on a prefix."""
    own: Range
    """Tokens of a prompt behind its prefix."""
    outputs: str
    """Trace whose output lengths are drawn from."""
    chained: bool = False
    """Whether each request on a prefix begins with all of the one before it."""


KINDS = {
    "documents": Kind(tokens=(500, 4000), uses=(3, 20), own=(10, 60), outputs="azure_conv"),
    "prefixes": Kind(tokens=(500, 2500), uses=(5, 40), own=(50, 400), outputs="burstgpt"),
    "agents": Kind((100, 1500), uses=(4, 24), own=(10, 200), outputs="azure_code", chained=True),
    "reasoning": Kind(tokens=(0, 0), uses=(1, 1), own=(20, 300), outputs="reasoning"),
}
"""Workloads by name."""

_AGENT_START = 1500
"""Tokens of an agent's instructions and tools, the same in all runs."""


def make_workload(text: str, requests: int, seed: int, order: str = "shuffled") -> Workload:
    """Return ``requests`` requests of the workload that ``text`` names; the same for the same
    arguments.

    ``text``: a name of `KINDS` or `recipe.PAPER_TRACES`, or a recipe, with fields behind it; or
    names of traces, joined by ``+``, as many requests of each.
    ``order``: one of `ORDERS`. Raises WorkloadError naming the field.
    """
    if order not in ORDERS:
        raise WorkloadError(f"order {order!r}: choose from {', '.join(ORDERS)}")
    name, _, more = text.partition(",")
    parts = name.split("+")
    if name in KINDS:
        workload = _draw(text, _with_fields(KINDS[name], more), requests, seed)
    elif set(parts) <= set(NAMES) and not more:
        traces = [(LengthTrace.named(part), 1.0) for part in parts]
        workload = from_traces(traces, text, requests, seed)
    elif "=" not in name and name not in PAPER_TRACES:
        wrong = [part for part in parts if part not in NAMES] or [more]
        raise WorkloadError(
            f"--workload {text}: {wrong[0] or 'nothing'!r} is none of {', '.join(NAMES)}, which "
            f"may be joined by +; nor is {name!r} one of {', '.join((*KINDS, *PAPER_TRACES))}, or "
            "a recipe like density=1.4,sharing=0.35"
        )
    else:
        workload = Recipe.parse(text).workload(requests, seed)
    return ordered(workload, order)


def ordered(workload: Workload, order: str) -> Workload:
    """Return the requests in one of the `ORDERS` of a file; shuffled ones are left as they are."""
    if order == "shuffled":
        return workload
    number = workload.prefix
    if order == "jobs":
        workload = ordered(workload, "sorted")
        job = np.arange(workload.size) // _JOB_REQUESTS
        turn = np.random.default_rng([workload.size, 11]).permutation(job[-1] + 1)
        return workload.take(np.argsort(turn[job], kind="stable"))
    if order == "sorted":
        # Within a prefix the shorter uses first: an agent's steps in their order.
        keep = np.lexsort((workload.prefix_tokens, number, workload.source))
        return workload.take(keep)
    by_prefix = np.lexsort((workload.prefix_tokens, number))
    first = np.unique(number[by_prefix], return_index=True)[1]
    lengths = np.diff(np.append(first, number.size))
    turn = np.empty(number.size, dtype=np.int64)
    turn[by_prefix] = np.arange(number.size) - np.repeat(first, lengths)
    turn[number < 0] = 0
    return workload.take(np.lexsort((number, turn)))


def _with_fields(kind: Kind, text: str) -> Kind:
    """``kind`` with the ranges that ``text`` gives. Raises WorkloadError."""
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        low, _, high = value.partition("-")
        if name not in ("tokens", "uses", "own") or not (low + high).isdigit():
            raise WorkloadError(
                f"workload field {part!r}: write tokens=500-4000, uses=3-20 or own=10-60"
            )
        ends = int(low), int(high or low)
        if ends[0] > ends[1] or (name != "tokens" and ends[0] < 1):
            raise WorkloadError(f"workload field {part!r}: from 1 up, the smaller number first")
        kind = replace(kind, **{name: ends})  # type: ignore[arg-type]
    return kind


def _draw(name: str, kind: Kind, requests: int, seed: int) -> Workload:
    rng = np.random.default_rng([seed, 7])
    answers = LengthTrace.named(kind.outputs)

    def among(ends: Range, count: int) -> np.ndarray:
        return rng.integers(ends[0], ends[1] + 1, count)

    uses = among(kind.uses, requests)
    uses = uses[: int(np.searchsorted(np.cumsum(uses), requests)) + 1]
    uses[-1] -= uses.sum() - requests
    prefix = np.repeat(np.arange(uses.size), uses)
    output = answers.draw(requests, seed, 7).output_tokens
    own = among(kind.own, requests)
    if kind.chained:
        added = among(kind.tokens, requests) + own + output
        before = np.cumsum(added) - added
        start = np.repeat(np.cumsum(uses) - uses, uses)
        prefix_tokens = before - before[start]
    else:
        prefix_tokens = among(kind.tokens, uses.size)[prefix]
    if not prefix_tokens.any():
        prefix = np.full(requests, -1)
    workload = Workload(
        name=name,
        prompt_tokens=prefix_tokens + own,
        output_tokens=output,
        max_tokens=np.full(requests, cap_for(int(answers.output_tokens.max())), dtype=np.int64),
        prefix=prefix.astype(np.int64),
        prefix_tokens=prefix_tokens.astype(np.int64),
        source=np.zeros(requests, dtype=np.int64),
        sources=(name.partition(",")[0],),
        seed=seed,
    )
    if kind.chained:
        workload = workload.with_system_prompts(_AGENT_START)
    return workload.take(rng.permutation(requests))
