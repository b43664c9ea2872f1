"""Several engines on the fast step model, fed from one plan.

pytest test/simulator/test_many_simulated_engines.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang.srt.blendserve.cli import main
from sglang.srt.blendserve.simulator.fast_run import FastRun
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.many_engines import Fleet
from sglang.srt.blendserve.simulator.options import BlendOptions
from sglang.srt.blendserve.simulator.result import Result

REQUESTS = 3000


def played(fleet: Fleet, policy: str = "blendserve", window: int = 256) -> Result:
    """Documents with a few questions each, of about the same length, on so many engines."""
    machine = Machine.build("Llama-3.1-8B", "A100-80G", "lanes", rates="tables", scale=8)
    run = FastRun(make_workload("documents", REQUESTS, 0, "shuffled"), machine, fleet=fleet)
    flags = {} if policy == "blendserve" else {"chunks": (512,), "conservativeness": (1.0,)}
    return run.run(policy, options=BlendOptions(window=window), **flags)


@pytest.fixture(scope="module")
def one() -> Result:
    return played(Fleet())


@pytest.mark.parametrize("engines", [2, 4])
def test_engines_share_the_work_and_keep_what_is_shared(one: Result, engines: int) -> None:
    found = played(Fleet(engines))
    assert sum(engine["requests"] for engine in found.engines) == REQUESTS
    assert found.tokens_per_second > 0.8 * engines * one.tokens_per_second
    assert found.prefix_sharing > 0.94 * one.prefix_sharing
    ends = [engine["ended_at"] for engine in found.engines]
    assert min(ends) > 0.8 * max(ends)
    assert found.seconds == pytest.approx(max(ends))
    assert all(e["busy_seconds"] <= e["ended_at"] * 1.0001 for e in found.engines)


def test_one_engine_of_a_fleet_is_one_engine(one: Result) -> None:
    assert played(Fleet(1)).seconds == one.seconds


def test_a_faster_engine_gets_more() -> None:
    slow, fast = played(Fleet(2, speeds=(0.5, 1.0))).engines
    assert 1.5 < fast["requests"] / slow["requests"] < 2.7


@pytest.mark.parametrize("after", [0.1, 0.95])
def test_what_an_engine_had_that_dies_is_answered_by_the_others(after: float) -> None:
    found = played(Fleet(3, dies_after=after))
    assert sum(engine["requests"] for engine in found.engines) == REQUESTS
    dead, *alive = found.engines
    assert dead["ended_at"] < min(engine["ended_at"] for engine in alive)


def test_in_turn_as_sglang_shares_less() -> None:
    dealt, planned = played(Fleet(4), "fcfs"), played(Fleet(4))
    assert [engine["requests"] for engine in dealt.engines] == [REQUESTS // 4] * 4
    assert dealt.prefix_sharing < 0.75 * planned.prefix_sharing


@pytest.mark.parametrize(
    ("fleet", "words"),
    [
        ({"engines": 0}, "--engines 0"),
        ({"engines": 2, "speeds": (1.0, 0.0)}, "must be positive"),
        ({"engines": 1, "dies_after": 0.5}, "nobody to go on"),
    ],
)
def test_what_cannot_be(fleet: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Fleet(**fleet)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    given = ["simulate", "--fast", "--workload", "documents", "--requests", "300"]
    given += ["--policies", "fcfs,blendserve", "--chunks", "512", "--conservativeness", "1"]
    assert main([*given, "--engines", "2", "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document["machine"]["engines"] == 2
    assert [len(result["engines"]) for result in document["results"]] == [2, 2]


def test_several_engines_need_the_step_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--workload", "documents", "--requests", "9", "--engines", "2"]) == 2
    assert "--engines: several are simulated on the step model alone" in capsys.readouterr().err
