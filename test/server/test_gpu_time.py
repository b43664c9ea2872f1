"""GPU time of batches: how it is divided, written down and predicted.

pytest test/server/test_gpu_time.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Held, ScriptedEngine, jsonl, line, serve

from sglang.srt.blendserve.server.gpu_time import Done, GpuTime, Running, predicted
from sglang.srt.blendserve.store.tally import Tally


def answered(tokens: int) -> Tally:
    return Tally(completed=tokens, output_tokens=tokens)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def gpu_time(clock: Clock, gpus: int = 1) -> GpuTime:
    return GpuTime(lambda: gpus, lambda tally: float(tally.output_tokens), clock)


def test_one_batch_has_all_the_time_in_which_it_runs() -> None:
    clock = Clock()
    time = gpu_time(clock, gpus=4)
    for in_flight in (0, 3, 3, 0, 2):
        clock.now += 1
        time.tick({"a": Running(answered(0), in_flight)})
    assert time.due("a") == 12
    assert time.take("a") == 12
    assert time.take("a") == 0


def test_several_have_their_part_of_what_was_answered() -> None:
    clock = Clock()
    time = gpu_time(clock)
    time.tick({"a": Running(answered(0), 5), "b": Running(answered(0), 5)})
    clock.now += 10
    time.tick({"a": Running(answered(30), 5), "b": Running(answered(10), 50)})
    assert time.due("a") == pytest.approx(7.5)
    assert time.due("b") == pytest.approx(2.5)
    clock.now += 100  # what was answered long ago does not count
    time.tick({"a": Running(answered(30), 5), "b": Running(answered(20), 50)})
    clock.now += 10
    time.tick({"a": Running(answered(30), 5), "b": Running(answered(40), 50)})
    assert time.due("b") > 100
    clock.now += 10
    time.tick({"b": Running(answered(40), 0)})
    assert time.take("a") + time.take("b") == pytest.approx(120)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=3
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 8),
)
def test_no_time_is_lost_and_none_is_invented(
    steps: list[dict[str, tuple[int, int]]], gpus: int
) -> None:
    clock, done, busy = Clock(), dict.fromkeys("abc", 0), 0
    time = gpu_time(clock, gpus)
    for step in steps:
        clock.now += 7
        for name, (tokens, _) in step.items():
            done[name] += tokens
        time.tick({name: Running(answered(done[name]), step[name][1]) for name in step})
        busy += 7 * any(in_flight for _, in_flight in step.values())
    assert sum(map(time.take, "abc")) == pytest.approx(gpus * busy)


def test_a_prediction_goes_over_from_others_to_the_batch_itself() -> None:
    none, half = Done.by_lines(0.0), Done.by_lines(0.5)
    assert predicted(0.0, none, None) is None
    assert predicted(0.0, none, 500.0) == 500
    assert predicted(600.0, none, 500.0) == 600
    assert predicted(10.0, Done.by_lines(0.1), None) == 100
    assert predicted(300.0, half, 500.0) == 500  # lines say little before half of them
    late = Done.by_lines(0.75)
    assert predicted(600.0, late, 500.0) == pytest.approx(0.5 * 600 + 0.5 * 800)
    work = Done.by_work(0.5)
    assert predicted(500.0, work, 100.0) == pytest.approx(0.5 * 500 + 0.5 * 1000)
    assert predicted(90.0, Done.by_lines(1.0), 500.0) == 90


async def shown(service: Any, batch_id: str) -> dict[str, Any]:
    return dict((await service.http.get(f"/v1/batches/{batch_id}")).json())


def test_engines_that_do_nothing_are_not_charged() -> None:
    clock, working = Clock(), [4.0]
    time = GpuTime(lambda: working[0], lambda tally: 1.0, clock)
    for gpus in (4.0, 4.0, 1.0):
        working[0] = gpus
        clock.now += 10
        time.tick({"a": Running(answered(0), 1)})
    assert time.take("a") == 90


@pytest.mark.anyio
async def test_a_batch_that_is_paused_holds_no_other_up(directory: Path) -> None:
    script = Held(20)
    async with serve(directory, ScriptedEngine(script), max_in_flight=4) as service:
        first = await service.submit([line(f"a{number}") for number in range(20)])
        await service.finish(first.id)
        large = await service.submit([line(f"b{number}") for number in range(900)])
        await service.http.post(f"/v1/batches/{large.id}", json={"paused": True})
        small = await service.submit([line(f"c{number}") for number in range(4)])
        await asyncio.sleep(0.3)
        forecast = (await shown(service, small.id))["forecast"]
        rate = service.runner._meter.request_rate()
        assert rate is not None
        assert forecast["ends_at"] - small.created_at <= 8 / rate + 2
        assert (await shown(service, large.id))["forecast"] is None
        script.let_end(1000)


@pytest.mark.anyio
async def test_what_is_used_is_kept_and_new_batches_are_forecast_by_it(directory: Path) -> None:
    script = Held()
    content = jsonl([line(f"a{number}") for number in range(4)])
    async with serve(directory, ScriptedEngine(script)) as service:
        first = await service.submit(content)
        assert (await shown(service, first.id))["forecast"] is None  # nothing to go by
        await asyncio.sleep(1.2)
        running = (await shown(service, first.id))["gpu_seconds"]
        assert running > 0.5
        script.let_end(4)
        await service.finish(first.id)
        used = (await shown(service, first.id))["gpu_seconds"]
        assert used >= running
    async with serve(directory, ScriptedEngine(Held())) as service:
        assert (await shown(service, first.id))["gpu_seconds"] == pytest.approx(used)
        file = await service.client.files.create(file=("b.jsonl", content * 2), purpose="batch")
        created = await service.client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        forecast = (created.model_extra or {})["forecast"]  # in the answer to the call itself
        assert forecast["gpu_seconds"] == pytest.approx(2 * used, rel=0.05)
        assert forecast["in_time"] is True
        assert -1 <= forecast["ends_at"] - created.created_at - 2 * used <= 3
        assert created.created_at <= forecast["starts_at"] <= forecast["ends_at"]
