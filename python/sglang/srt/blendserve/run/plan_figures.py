"""What the planner says of a run's requests: how much could be shared, and how dense they were."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.totals import KeptPrompt
from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.plan.annotations import request_costs
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """A run's requests as the planner sees them; None where that is not known.

    Attributes:
        sharing_optimum: share of the prompt tokens saved when each shared prefix is computed
            once (paper's s_o), in [0, 1].
        planned_density: compute density of all requests, each prefix computed once, with output
            lengths as the planner expects them before the first request runs.
        measured_density: the same with the lengths that came.
    """

    sharing_optimum: float | None
    planned_density: float | None
    measured_density: float | None


def plan_figures(prompts: Sequence[KeptPrompt], cost: CostModel | None) -> PlanFigures:
    """Return the figures of the answered ``prompts``; without ``cost`` there are no densities."""
    if not prompts:
        return PlanFigures(None, None, None)
    single = [(prompt, 1) for prompt in prompts]
    copies = [(prompt, len(prompt.output_lengths)) for prompt in prompts]
    tree = _tree(copies)
    sharing = (tree if all(n == 1 for _, n in copies) else _tree(single)).sharing
    if cost is None:
        return PlanFigures(sharing, None, None)
    counts = [count for _, count in copies]
    measured = np.array(
        list(itertools.chain.from_iterable(p.output_lengths for p in prompts)), dtype=np.float64
    )
    expected = LengthEstimator(
        np.repeat([p.tokens.size for p in prompts], counts),
        np.repeat([p.max_tokens or 0 for p in prompts], counts),
        np.repeat([p.known_length for p in prompts], counts),
        context_length=cost.model.context_length or 1 << 20,
    ).estimate()
    return PlanFigures(
        sharing_optimum=sharing,
        planned_density=_density(tree, expected, cost),
        measured_density=_density(tree, measured, cost),
    )


def _tree(prompts: Sequence[tuple[KeptPrompt, int]]) -> PrefixTree:
    """Build the prefix tree with each prompt as often as told."""
    tokens = [prompt.tokens for prompt, count in prompts for _ in range(count)]
    names: dict[str, int] = {}
    spaces = [names.setdefault(prompt.namespace, len(names)) for prompt, _ in prompts]
    counts = [count for _, count in prompts]
    return PrefixTree.build(tokens, np.repeat(np.array(spaces, dtype=np.int64), counts))


def _density(tree: PrefixTree, lengths: NDArray[np.float64], cost: CostModel) -> float:
    costs = request_costs(tree, lengths, cost)
    return float(density(costs.compute_seconds.sum(), costs.memory_seconds.sum()))
