"""A model's kernel times, put together from the table of a device."""

from __future__ import annotations

import pytest

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.kernel_times import KernelTimes
from sglang.srt.blendserve.cost.layer_shape import HeadLayout
from sglang.srt.blendserve.cost.measured_cost import measured_cost
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.model_times import ModelTimes, measured_times

LLAMA = ModelSpec.named("Llama-3.1-8B")
A100 = DeviceSpec.named("A100-80G")


def test_shapes_hold_all_weights() -> None:
    """The products of all layers have as many weights as the model without its embeddings."""
    shape = LLAMA.shape
    assert shape is not None
    weights = LLAMA.layers * sum(n * k for n, k in shape.products())
    norms = (2 * LLAMA.layers + 1) * shape.hidden
    rest = LLAMA.embedding_parameters + LLAMA.head_parameters
    assert weights + norms + rest == LLAMA.parameters


def test_ranks_share_a_layer() -> None:
    """Each rank has its part of every product, and copies of KV heads where there are too few."""
    shape = LLAMA.shape
    assert shape is not None
    whole = sum(n * k for n, k in shape.products())
    assert 4 * sum(n * k for n, k in shape.products(4)) == whole
    assert shape.layout(16) == HeadLayout(2, 1, 128)
    with pytest.raises(ValueError, match="3 ranks cannot share 32 attention heads"):
        shape.layout(3)


def test_a_step_adds_up_its_layers() -> None:
    kernels = KernelTimes.of("A100-80G")
    times = measured_times(LLAMA, A100)
    one = sum(
        kernels.product(n, k)(256)
        for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    )
    assert times.body(256) == pytest.approx(32 * one)
    assert times.head(16) == pytest.approx(kernels.product(128256, 4096)(16))
    layer = kernels.attention("decode", HeadLayout(32, 8, 128))(64, 1000)
    assert times.decode_attention(64, 64_000) == pytest.approx(32 * layer)


def test_prompts_are_looked_up_by_their_pairs() -> None:
    """Eight prompts of 512, and a chunk behind a cached prefix as a whole prompt of its pairs."""
    kernels = KernelTimes.of("A100-80G")
    prefill = kernels.attention("prefill", HeadLayout(32, 8, 128))
    times = measured_times(LLAMA, A100)
    eight = times.prefill_attention(8 * 512, 8 * 512 * 512 / 2)
    assert eight == pytest.approx(32 * prefill(8, 512))
    behind = times.prefill_attention(1024, 1024 * (4096 + 512))
    alone = times.prefill_attention(1024, 1024 * 512)
    assert behind > 3 * alone
    assert times.prefill_attention(0, 0) == times.decode_attention(0, 0) == 0


def test_ranks_exchange_what_they_computed() -> None:
    """Eight ranks take an eighth of the weights' time or more, and talk to each other."""
    large, h100 = ModelSpec.named("Llama-3.1-70B"), DeviceSpec.named("H100")
    four, eight = (measured_times(large, h100.tensor_parallel(ranks)) for ranks in (4, 8))
    assert eight.body(2048) > four.body(2048) / 2
    assert eight.fixed == four.fixed > 0
    assert eight.token > measured_times(LLAMA, h100).token


def test_what_was_not_measured_is_refused() -> None:
    kernels = KernelTimes.of("H100")
    h100 = DeviceSpec.named("H100")
    with pytest.raises(ValueError, match="experts or latent attention"):
        ModelTimes.of(ModelSpec.named("Mixtral-8x7B"), h100, kernels)
    with pytest.raises(ValueError, match="not in 16 bits"):
        ModelTimes.of(ModelSpec.named("Llama-3.1-8B", kv_dtype_bytes=1), h100, kernels)
    with pytest.raises(ValueError, match="no kernel times of device 'L40S'"):
        measured_times(LLAMA, DeviceSpec.named("L40S"))
    two = DeviceSpec.named("L40S").tensor_parallel(2)
    with pytest.raises(ValueError, match="no bandwidth between several"):
        ModelTimes.of(LLAMA, two, kernels)


def test_the_planner_counts_what_the_device_does() -> None:
    """On an A100 attention reaches less of the bandwidth than products of the arithmetic, so
    requests are less compute-bound than the data sheet says; on Hopper the other way round."""
    for name, less in (("A100-80G", True), ("H100", False), ("H200", False)):
        device = DeviceSpec.named(name)
        density = measured_cost(LLAMA, device).density(600, 250)
        assert (density < CostModel(LLAMA, device).density(600, 250)) == less
    unknown = CostModel(LLAMA, DeviceSpec.named("L40S"))
    assert measured_cost(LLAMA, unknown.device) == unknown
