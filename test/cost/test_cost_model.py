"""Cost model against the paper's own numbers. Run: pytest test/cost/test_cost_model.py"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.cost_model import CostModel, density
from sglang.srt.blendserve.cost.device_spec import DeviceSpec, known_devices, measure_cpu
from sglang.srt.blendserve.cost.model_spec import ModelSpec

LLAMA_3 = ModelSpec.named("Llama-3-8B")
A100 = DeviceSpec.named("A100-80G")
COST = CostModel(LLAMA_3, A100)

tokens = st.integers(min_value=1, max_value=100_000)


def test_density_table_of_the_paper() -> None:
    """Order and magnitude of the paper's table (Llama-3-8B, one A100), from mean lengths.

    Prompt and output means: MMLU 5-shot of hendrycks/test in Qwen tokens with an answer of a
    letter and the end token, and the table's own sharing of 0.86; Azure code trace 2023; BurstGPT
    sample of 8,000; ShareGPT as in the vLLM paper (SOSP '23, 161 and 338); OpenVid: the table's
    16K output tokens behind a one-sentence prompt. The traces are not the paper's own samples, so
    a factor of 2.5 is allowed.
    """
    prompt = np.array([606.8, 2047.8, 362.9, 161.0, 50.0])
    output = np.array([2.0, 27.9, 57.0, 338.0, 16384.0])
    sharing = np.array([0.86, 0.01, 0.02, 0.02, 0.0])
    paper = np.array([54.91, 33.2, 17.78, 3.12, 0.05])
    ours = COST.density(prompt, output, computed_prompt=prompt * (1 - sharing))
    assert (np.diff(ours) < 0).all()
    assert (ours / paper < 2.5).all()
    assert (paper / ours < 2.5).all()


def test_gemm_example_of_the_paper() -> None:
    """1.038 ms for a batch of 512 on an A100: at 312 TFLOP/s one decoder layer of a 13B model."""
    spec = ModelSpec.named("Llama-2-13B")
    layer = (spec.active_parameters - spec.head_parameters) / spec.layers
    seconds = 2 * 512 * layer / A100.peak_flops
    whole = CostModel(spec, A100).decode_compute_seconds(512)
    assert seconds == pytest.approx(1.038e-3, rel=0.01)
    assert whole / spec.layers == pytest.approx(1.038e-3, rel=0.02)


def test_formulas_of_the_paper_hold_for_short_prompts() -> None:
    """Comp = 2 (p + d) P / peak and Mem = (p d + d^2 / 2) H_kv L 4 / bandwidth, section 4."""
    p, d = 250.0, 250.0
    compute = 2 * (p + d) * LLAMA_3.parameters / 312e12
    memory = (p * d + d * d / 2) * 8 * 128 * 32 * 4 / 2.039e12
    assert float(COST.memory_seconds(p, d)) == pytest.approx(memory)
    # Embedding look-ups, and the head for prompt tokens, are no products: 10 % of an 8B model.
    assert 0.85 < float(COST.compute_seconds(p, d)) / compute < 1


def test_long_prompts_pay_for_half_of_the_square() -> None:
    p = 100_000.0
    linear = 2 * p * LLAMA_3.prefill_parameters
    square = 2 * p * p * LLAMA_3.attention_width * LLAMA_3.layers
    assert float(COST.prefill_seconds(p)) == pytest.approx((linear + square) / 312e12)


@given(prompt=tokens, cut=st.floats(min_value=0, max_value=1))
def test_prefill_in_two_pieces_costs_the_same(prompt: int, cut: float) -> None:
    first = int(prompt * cut)
    whole = COST.prefill_seconds(prompt)
    pieces = COST.prefill_seconds(first) + COST.prefill_seconds(prompt - first, first)
    assert pieces == pytest.approx(whole)


@given(prompt=tokens, output=tokens)
def test_request_is_the_sum_of_its_parts(prompt: int, output: int) -> None:
    total = COST.compute_seconds(prompt, output)
    assert total == pytest.approx(
        COST.prefill_seconds(prompt) + COST.output_seconds(prompt, output)
    )
    assert COST.compute_seconds(prompt, output, computed_prompt=prompt) == total
    assert COST.compute_seconds(prompt, output, computed_prompt=0) == pytest.approx(
        COST.output_seconds(prompt, output)
    )


@given(prompt=tokens, output=st.integers(min_value=1, max_value=2000))
def test_memory_is_the_sum_of_the_decode_steps(prompt: int, output: int) -> None:
    steps = COST.kv_read_seconds(prompt + np.arange(output) + 0.5)
    assert COST.memory_seconds(prompt, output) == pytest.approx(steps.sum())


def test_arrays_keep_their_shape_and_scalars_agree() -> None:
    p, d = np.array([[1.0, 20.0], [300.0, 4000.0]]), np.array([[5.0, 6.0], [7.0, 8.0]])
    for method in (COST.compute_seconds, COST.memory_seconds, COST.density):
        result = method(p, d)
        assert result.shape == (2, 2)
        assert result[1, 0] == method(300.0, 7.0)


def test_weights_are_read_once_a_step() -> None:
    nothing, one, many = COST.weights_seconds([0, 1, 4096])
    assert nothing == 0
    assert one == many == pytest.approx(2 * (8.03e9 - 0.525e9) / 2.039e12, rel=0.01)


def test_tensor_parallel_divides_both_and_keeps_the_density() -> None:
    four = CostModel(LLAMA_3, A100.tensor_parallel(4))
    assert four.compute_seconds(100, 50) == pytest.approx(COST.compute_seconds(100, 50) / 4)
    assert four.memory_seconds(100, 50) == pytest.approx(COST.memory_seconds(100, 50) / 4)
    assert four.density(100, 50) == pytest.approx(COST.density(100, 50))
    assert four.device.memory_bytes == 4 * A100.memory_bytes
    with pytest.raises(ValueError, match="at least 1"):
        A100.tensor_parallel(0)


def test_latent_attention_is_denser_than_multi_head() -> None:
    """A small cache and wide decode products: the same lengths are more compute-bound."""
    latent = CostModel(ModelSpec.named("DeepSeek-V2-Lite"), A100)
    many_heads = CostModel(ModelSpec.named("Llama-2-7B"), A100)
    assert latent.density(500, 500) > 4 * many_heads.density(500, 500)


def test_density_without_memory_is_infinite_and_of_nothing_is_zero() -> None:
    assert density([1.0, 0.0, 2.0], [0.0, 0.0, 4.0]).tolist() == [np.inf, 0.0, 0.5]


def test_devices_are_named_with_their_sources() -> None:
    assert set(known_devices()) == {"A100-80G", "H100", "H200", "B200", "L40S"}
    for name in known_devices():
        device = DeviceSpec.named(name.lower())
        assert device.name == name
        assert device.source
    assert DeviceSpec.named("H200").bandwidth > DeviceSpec.named("H100").bandwidth
    with pytest.raises(ValueError, match=r"'TPU'.*A100-80G"):
        DeviceSpec.named("TPU")


def test_a_device_without_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        DeviceSpec("broken", 1e12, 0.0, 1e9, "nowhere")


def test_this_cpu_can_be_measured() -> None:
    cpu = measure_cpu()
    assert 1e8 < cpu.peak_flops < 1e15
    assert 1e8 < cpu.bandwidth < 1e13
    assert cpu.memory_bytes > 1e8
    assert cpu.source.startswith("measured")
