"""Hypothesis strategies for pools of requests, shared by the planner's tests."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec

COST = CostModel(ModelSpec.named("Llama-3-8B"), DeviceSpec.named("A100-80G"))

Tokens = NDArray[np.int32]


class Pool(NamedTuple):
    """Prompts of a pool with their output lengths and namespaces, all of length n."""

    prompts: list[Tokens]
    output_tokens: NDArray[np.float64]
    namespaces: NDArray[np.int64] | None


@st.composite
def pools(draw: st.DrawFn, least: int = 0, most: int = 40) -> Pool:
    """Pools with much sharing: prompts are concatenations of a few common pieces and a tail."""
    alphabet = draw(st.integers(1, 3))
    piece = st.lists(st.integers(0, alphabet), max_size=20)
    pieces = draw(st.lists(piece, min_size=1, max_size=4))
    prompt = st.tuples(
        st.lists(st.sampled_from(pieces), max_size=4).map(lambda parts: [*chain(*parts)]),
        st.lists(st.integers(0, 30_000), max_size=3),
    ).map(lambda parts: np.array(parts[0] + parts[1], dtype=np.int32))
    prompts = draw(st.lists(prompt, min_size=least, max_size=most))
    count = len(prompts)
    lengths = draw(
        st.lists(st.sampled_from([1, 2, 7, 50, 400, 3000]), min_size=count, max_size=count)
    )
    namespaces = draw(
        st.none() | st.lists(st.integers(-1, 2), min_size=count, max_size=count).map(np.array)
    )
    if namespaces is not None:
        namespaces = namespaces.astype(np.int64)
    return Pool(prompts, np.array(lengths, dtype=np.float64), namespaces)
