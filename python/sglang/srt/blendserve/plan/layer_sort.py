"""Layer sort (paper section 5.2, algorithm 1): siblings by density, most compute-bound first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.plan.annotations import (
    Annotations,
    RequestCosts,
    annotate,
    request_costs,
)
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SortedTree:
    """A layer-sorted tree with its costs."""

    tree: PrefixTree
    costs: RequestCosts
    unsorted: PrefixTree
    order: Ints
    """(nodes,) node of ``unsorted`` at each place of ``tree``."""

    @cached_property
    def annotations(self) -> Annotations:
        """Per node of ``tree``; made when first read, because only reports read them."""
        return annotate(self.unsorted, self.costs).take(self.order)


def sort_tree(
    tree: PrefixTree,
    output_tokens: Floats,
    cost: CostModel,
    kv_reads: Floats | None = None,
) -> SortedTree:
    """Layer-sort ``tree`` for predicted lengths; arguments as in `request_costs`."""
    costs = request_costs(tree, output_tokens, cost, kv_reads)
    by_node = density(tree.leaf_sum(costs.compute_seconds), tree.leaf_sum(costs.memory_seconds))
    in_order, order = layer_sort(tree, by_node)
    return SortedTree(in_order, costs, tree, order)


def layer_sort(tree: PrefixTree, density: Floats) -> tuple[PrefixTree, Ints]:
    """``tree`` with the children of every node in order of falling ``density`` (nodes,).

    The shape stays, so depth-first order keeps all of its sharing. Siblings of equal density
    keep their order, which makes the result a function of the prompts alone. Also returns the
    (nodes,) order of the nodes, as `PrefixTree.reordered` does.

    Densities are compared to seven digits: they are sums, and sums of the same numbers in another
    order differ in the last of sixteen.
    """
    with np.errstate(over="ignore"):
        compared = density.astype(np.float32)
    return tree.reordered(-compared)
