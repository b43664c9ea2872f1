"""Layer sort (paper section 5.2, algorithm 1): siblings by density, most compute-bound first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
