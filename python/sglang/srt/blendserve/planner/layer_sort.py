"""Layer sort (paper section 5.2, algorithm 1): siblings by density, most compute-bound first."""

from __future__ import annotations

from sglang.srt.blendserve.planner.annotations import Annotations
from sglang.srt.blendserve.planner.prefix_tree import PrefixTree


def layer_sort(tree: PrefixTree, annotations: Annotations) -> tuple[PrefixTree, Annotations]:
    """``tree`` with the children of every node in order of falling density.

    The shape stays, so depth-first order keeps all of its sharing. Siblings of equal density
    keep their order, which makes the result a function of the prompts alone.
    """
    sorted_tree, order = tree.reordered(-annotations.density)
    return sorted_tree, annotations.take(order)
