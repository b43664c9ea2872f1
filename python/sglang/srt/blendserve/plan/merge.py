"""Merge (paper section 5.2, step 3): neighbours in the scan order become scheduling units.

After layer sort and split the densities along the scan still rise here and there, where moving a
request would cost more sharing than it is worth. Neighbours that stand in the wrong order are
merged until the densities of the units never rise. The order itself stays, so merging costs no
sharing, and the dual scanner, which takes single requests, does not read the units: they are for
pictures and reports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from sglang.srt.blendserve.cost.cost_model import density
from sglang.srt.blendserve.plan.scan_order import Plan

Floats = NDArray[np.float64]


def unit_densities(plan: Plan) -> Floats:
    """(m,) density of the scheduling unit that each scan position of ``plan`` belongs to.

    It never rises along the scan. Takes some 70 ms for 400,000 requests.
    """
    return merge_units(plan.compute_seconds[plan.order], plan.memory_seconds[plan.order])


def merge_units(compute: Floats, memory: Floats) -> Floats:
    """(n,) density of the unit that each scan position belongs to; it never rises.

    ``compute``, ``memory``: (n,) seconds by scan position. A unit's density is its summed compute
    over its summed memory, infinite without memory. A position without any work belongs to the
    unit before it.

    Pool adjacent violators: the falling sequence nearest to the given one (least squares). It is
    fitted to compute / (compute + memory), which is finite everywhere and rises with the density,
    so both have the same units.
    """
    work = compute + memory
    some = np.flatnonzero(work > 0)
    if some.size == 0:
        return np.zeros(compute.size)
    c, m = compute[some], memory[some]
    fit = isotonic_regression(c / work[some], weights=work[some], increasing=False)
    first = fit.blocks[:-1]
    level = density(np.add.reduceat(c, first), np.add.reduceat(m, first))
    # Two ways to divide may round differently: let no unit rise by a last bit.
    level = np.minimum.accumulate(level)
    unit = np.searchsorted(some[first], np.arange(compute.size), side="right") - 1
    merged: Floats = level[np.maximum(unit, 0)]
    return merged
