"""Step times by measured kernel times, and what running both kinds of work at once costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.cost.model_times import measured_times
from sglang.srt.blendserve.cost.step_seconds import FIXED_STEP_SECONDS
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.measured_steps import MeasuredSteps
from sglang.srt.blendserve.simulator.overlap_cost import LANE_RANGES, LANES, NANOFLOW
from sglang.srt.blendserve.simulator.recipe import Recipe
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.step_cost import StepWork

MODEL, DEVICE = "Llama-3.1-8B", "A100-80G"
MIXED = StepWork(1024, 1024 * 400.0, 3, 256, 256 * 1600)


def machine(engine: str, scale: float = 1, **more: object) -> Machine:
    return Machine.build(MODEL, DEVICE, engine, scale=scale, rates=None, **more)  # type: ignore[arg-type]


def test_a_sequential_step_is_its_kernels_one_after_the_other() -> None:
    times = measured_times(ModelSpec.named(MODEL), DeviceSpec.named(DEVICE))
    compute = times.body(1280) + times.head(259) + 1280 * times.token
    compute += times.prefill_attention(1024, 1024 * 400)
    memory = times.decode_attention(256, 256 * 1600)
    step = machine("sequential").steps.step(MIXED)
    assert step.compute == pytest.approx(compute)
    assert step.memory == pytest.approx(memory)
    assert step.seconds == pytest.approx(compute + memory + FIXED_STEP_SECONDS)


def test_nanoflow_exchanges_its_published_rates() -> None:
    body = measured_times(ModelSpec.named(MODEL), DeviceSpec.named(DEVICE)).body
    compute, memory, seconds = machine("nanoflow").steps.step(MIXED)
    halves = compute + 2 * body(640) - body(1280)
    assert halves > memory
    assert seconds == pytest.approx(halves + 0.5 * memory + FIXED_STEP_SECONDS)
    decode = StepWork(0, 0.0, 0, 256, 256 * 1600)
    compute, memory, seconds = machine("nanoflow").steps.step(decode)
    halves = compute + 2 * body(128) - body(256)
    assert seconds == pytest.approx(memory + 0.33 * halves + FIXED_STEP_SECONDS)


def test_nanoflow_leaves_alone_what_does_not_pay() -> None:
    """Few decodes: reading the weights twice would cost more than the overlap gains."""
    few = StepWork(0, 0.0, 0, 4, 400)
    one_by_one = machine("sequential").steps.step(few).seconds
    assert machine("nanoflow").steps.step(few).seconds == pytest.approx(one_by_one)


@given(
    prefill=st.integers(0, 8192),
    context=st.integers(1, 4000),
    decodes=st.integers(0, 512),
    kv=st.integers(16, 3000),
)
def test_no_engine_beats_the_ideal_one_nor_loses_to_none(
    prefill: int, context: int, decodes: int, kv: int
) -> None:
    """Overlap is between doing one after the other and overlap for free; lanes, whose products are
    others, by more than the tables' roughness."""
    work = StepWork(prefill, prefill * float(context), min(prefill, 1), decodes, decodes * kv)
    ideal, nanoflow, sequential = (
        machine(engine).steps.step(work).seconds for engine in ("ideal", "nanoflow", "sequential")
    )
    lanes = machine("lanes").steps.step(work).seconds
    assert ideal <= nanoflow * (1 + 1e-9)
    assert nanoflow <= sequential * (1 + 1e-9)
    assert ideal <= lanes * 1.05


def test_lanes_that_are_alone_have_the_whole_device() -> None:
    for work in (StepWork(2048, 2048 * 300.0, 4, 0, 0), StepWork(0, 0.0, 0, 200, 200 * 1000)):
        lanes, sequential = (machine(e).steps.step(work) for e in ("lanes", "sequential"))
        assert lanes == sequential


def test_lanes_read_the_weights_twice() -> None:
    """A prompt of few tokens beside few decodes: both lanes load all weights."""
    work = StepWork(16, 16 * 8.0, 1, 8, 8 * 100)
    lanes, sequential = (machine(e).steps.step(work).seconds for e in ("lanes", "sequential"))
    assert lanes > 1.5 * sequential - FIXED_STEP_SECONDS


def test_published_costs_of_lanes() -> None:
    """The constants of the lanes give the published cost of overlapping, on each device."""
    for name, (compute, memory) in LANE_RANGES.items():
        exchange = LANES[name].exchange()
        assert compute[0] <= exchange.compute_longer <= compute[1], name
        assert memory[0] <= exchange.memory_longer <= memory[1], name
    assert set(NANOFLOW) == {"A100-80G"}


def test_a_division_costs_what_it_says() -> None:
    """Long prefill beside decode attention: longer + cost * shorter, a little more for the decodes'
    own products on their part of the SMs."""
    work = StepWork(8192, 8192 * 500.0, 8, 64, 64 * 4000)
    steps = machine("lanes").steps
    times = measured_times(ModelSpec.named(MODEL), DeviceSpec.named(DEVICE))
    prompts = times.body(8192) + times.head(8) + 8192 * times.token
    prompts += times.prefill_attention(8192, 8192 * 500)
    memory = times.decode_attention(64, 64 * 4000)
    least = prompts + LANES[DEVICE].exchange().compute_longer * memory
    seconds = steps.step(work).seconds - FIXED_STEP_SECONDS
    products = times.body(64) + times.head(64)
    assert least < seconds < least + 4 * products


@pytest.mark.parametrize("better", [{"slowed": 1.0}, {"kept": 1.0}, {"knee": 8}])
def test_each_published_cost_of_lanes_counts(better: dict[str, float]) -> None:
    """Lanes that cost each other less take less time."""
    steps = machine("lanes").steps
    assert isinstance(steps, MeasuredSteps)
    assert steps.lanes is not None
    cheaper = replace(steps, lanes=replace(steps.lanes, **better))  # type: ignore[arg-type]
    works = [StepWork(n, n * 400.0, 1, 256, 256 * 1600) for n in (128, 512, 2048, 8192)]
    gains = [steps.step(work).seconds - cheaper.step(work).seconds for work in works]
    assert min(gains) >= 0
    assert max(gains) > 1e-4


def test_a_replica_takes_the_time_of_the_whole() -> None:
    """A replica's step has as many tokens as a full-size one, contexts of an eighth, and an eighth
    of the time; the fixed time is charged as often as there are full-size steps."""
    whole = machine("lanes").steps.step(StepWork(1024, 1024 * 400.0, 3, 256, 256 * 1600))
    part = machine("lanes", 8).steps.step(StepWork(1024, 1024 * 50.0, 24, 256, 256 * 200))
    assert part.seconds == pytest.approx(whole.seconds / 8)
    assert part.memory == pytest.approx(whole.memory / 8)
    nothing = machine("lanes", 8).steps.step(StepWork(0, 0.0, 0, 0, 0))
    assert nothing.seconds == pytest.approx(FIXED_STEP_SECONDS / 8)


@pytest.mark.parametrize("engine", ["sequential", "lanes", "nanoflow", "ideal"])
def test_no_policy_beats_the_bound(engine: str) -> None:
    workload = Recipe.parse("trace2").workload(3000, seed=1)
    run = FastRun(workload, machine(engine, 8, kv_slots=100_000))
    for policy in ("fcfs", "dfs", "blendserve"):
        result: Result = run.run(policy, chunks=(2048,), conservativeness=(0.1,))
        assert 0.1 < result.share_of_optimum < 1
        assert result.compute_busy <= 1
        assert result.memory_busy <= 1


def test_which_rates_are_taken() -> None:
    """Tables where there are some and the engine is made for them, the data sheet elsewhere."""
    assert machine("lanes").rates == "tables"
    assert machine("overlap").rates == "peaks"
    assert Machine.build(MODEL, "L40S", "sequential", rates=None).rates == "peaks"
    assert Machine.build("Qwen3-30B-A3B", "H200", "ideal", rates=None).rates == "peaks"
    assert Machine.build(MODEL, DEVICE, "sequential", rates="peaks").rates == "peaks"


@pytest.mark.parametrize(
    ("device", "engine", "rates", "says"),
    [
        ("H100", "nanoflow", None, "what it costs on H100 to overlap is not published"),
        ("B200", "lanes", None, "published; it is on A100-80G, H100, H200"),
        ("L40S", "lanes", None, "no kernel times of device 'L40S'"),
        ("L40S", "sequential", "tables", "Give --rates peaks"),
        ("A100-80G", "overlap", "tables", "at data-sheet rates only"),
        ("A100-80G", "lanes", "peaks", "needs measured kernel times"),
        ("A100-80G", "warp", None, "choose from sequential, lanes, nanoflow, ideal, overlap"),
    ],
)
def test_what_there_is_no_table_for(device: str, engine: str, rates: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Machine.build(MODEL, device, engine, rates=rates)
