"""The radix sort gives numpy's stable order."""

import numpy as np
import pytest

from sglang.srt.blendserve.plan.radix_sort import stable_argsort


@pytest.mark.parametrize("size", [0, 1, 100, 1024, 20_000])
def test_floats_in_the_order_of_a_stable_argsort(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.normal(size=size) * 10.0 ** rng.integers(-300, 300, size)
    special = rng.choice([0.0, -0.0, np.inf, -np.inf, 1.0, 5e-324, -5e-324], size)
    values = np.where(rng.random(size) < 0.5, special, values)
    assert np.array_equal(stable_argsort(values), values.argsort(kind="stable"))
    assert np.array_equal(stable_argsort(-values), (-values).argsort(kind="stable"))
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    assert np.array_equal(stable_argsort(single), single.argsort(kind="stable"))
