"""Merge (paper section 5.2, step 3): neighbours in the scan order become scheduling units.

After layer sort and split the densities along the scan still rise here and there, where moving a
request would cost more sharing than it is worth. A scanner that followed each of them would see
its two ends jitter. Neighbours that stand in the wrong order are merged until the densities of
the units never rise. The order itself stays, so merging costs no sharing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import density

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def merge_units(compute: Floats, memory: Floats) -> tuple[Ints, Floats]:
    """Unit of each scan position, and each position's unit density; both of shape (n,).

    ``compute``, ``memory``: (n,) seconds by scan position. Units are numbered 0, 1, ... along
    the scan. A unit's density is its summed compute over its summed memory; it never rises from
    one unit to the next. This is the pool-adjacent-violators algorithm, which gives the monotone
    densities nearest to the given ones (least squares, weighted by memory).
    """
    count = compute.size
    if count == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    # Cross products instead of quotients: right without memory too, and no division in the loop.
    units: list[tuple[float, float, int]] = []
    for position, (c, m) in enumerate(zip(compute.tolist(), memory.tolist(), strict=True)):
        first = position
        while units:
            before_c, before_m, before_first = units[-1]
            no_work = before_c == before_m == 0  # no density of its own
            if not no_work and before_c * m >= c * before_m:
                break
            c, m, first = before_c + c, before_m + m, before_first
            units.pop()
        units.append((c, m, first))
    firsts = np.array([u[2] for u in units])
    sizes = np.diff(firsts, append=count)
    densities = density([u[0] for u in units], [u[1] for u in units])
    # Products and quotients may round differently: let no unit rise by a last bit.
    densities = np.minimum.accumulate(densities)
    return np.repeat(np.arange(len(units)), sizes), np.repeat(densities, sizes)
