"""Stable sorting of large arrays by radix: the order that numpy's stable argsort gives, sooner.

numpy sorts 16-bit integers by radix, in time proportional to their number, and wider keys by
merging. A wide key is sorted 16 bits at a time here, the lowest first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SMALL = 4096
"""Below this size numpy's own stable sort is as fast. It changes time alone."""


def stable_argsort(values: NDArray[np.number]) -> Ints:
    """``values.argsort(kind="stable")`` of a one-dimensional array without NaN."""
    if values.size < _SMALL:
        return values.argsort(kind="stable")
    floats = values if values.dtype == np.float32 else values.astype(np.float64)
    width = 8 * floats.itemsize
    bits = (floats + floats.dtype.type(0)).view(f"u{floats.itemsize}")  # -0.0 and 0.0 are equal
    sign = bits.dtype.type(1 << (width - 1))
    # As integers, floats sort by size once the negative ones are turned round.
    return _by_digits(None, np.where(bits >= sign, ~bits, bits | sign), width)


def sort_by_group(order: Ints, group: Ints) -> Ints:
    """``order`` (k,) sorted by ``group[order]``, equal groups as they stood.

    ``group``: integers from 0 to 2^32.
    """
    if order.size < _SMALL:
        return order[group[order].argsort(kind="stable")]
    return _by_digits(order, group, int(group.max()).bit_length())


def _by_digits(order: Ints | None, keys: NDArray[np.unsignedinteger] | Ints, bits: int) -> Ints:
    for shift in range(0, max(bits, 1), 16):
        digits = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        if order is None:
            order = digits.argsort(kind="stable")
        else:
            order = order[digits[order].argsort(kind="stable")]
    assert order is not None
    return order
