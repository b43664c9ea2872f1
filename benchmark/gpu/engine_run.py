"""Run one engine over its workloads, in a process of its own.

    python benchmark/gpu/engine_run.py ORDER.json OUT.json

ORDER: ``engine`` (keywords of ``sglang.Engine``), ``ours``, ``depth_first``, ``loads`` (files of
`loads.Load.save`), ``steps`` (file for the step log, or empty). OUT is written anew after each
workload, so what was measured before a time-out counts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def request_ids(number: int, requests: int, *, ours: bool) -> list[str]:
    """Ids of the requests of workload ``number``; no underscore, which SGLang adds text behind."""
    if not ours:
        return [f"load{number}request{index:08d}" for index in range(requests)]
    from sglang.srt.blendserve import job_ids

    return [job_ids.make_rid(f"load{number}", requests, index) for index in range(requests)]


def use_plugin(folder: Path, lengths: dict[str, int], steps: str) -> None:
    """Have SGLang load `engine_plugin` in the processes it starts."""
    sys.path.insert(0, str(HERE))
    from install_delta import write_metadata

    entry = {"sglang.srt.plugins": {"benchmark": "engine_plugin:register"}}
    write_metadata(folder, "blendserve_benchmark", entry)
    (folder / "lengths.json").write_text(json.dumps(lengths))
    os.environ["BENCH_LENGTHS"] = str(folder / "lengths.json")
    os.environ["BENCH_STEPS"] = steps
    paths = [str(folder), str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path.insert(0, str(folder))


class Loads:
    """All workloads of one engine."""

    def __init__(self, files: list[str], *, ours: bool) -> None:
        self.data = [np.load(file) for file in files]
        self.ids = [
            request_ids(number, len(data["prompt_tokens"]), ours=ours)
            for number, data in enumerate(self.data)
        ]

    def lengths(self) -> dict[str, int]:
        """True output lengths by request id."""
        return {
            rid: int(length)
            for ids, data in zip(self.ids, self.data, strict=True)
            for rid, length in zip(ids, data["output_tokens"], strict=True)
        }

    def call(self, number: int, *, depth_first: bool) -> dict[str, Any]:
        """Arguments of ``Engine.generate`` for one workload."""
        data = self.data[number]
        prompts = np.split(data["tokens"], np.cumsum(data["prompt_tokens"])[:-1])
        order = data["depth_first"] if depth_first else np.arange(len(prompts))
        return {
            "input_ids": [prompts[i].tolist() for i in order],
            "sampling_params": [
                {"temperature": 0, "max_new_tokens": int(data["max_tokens"][i])} for i in order
            ],
            "rid": [self.ids[number][i] for i in order],
        }


def main(order: dict[str, Any], target: Path) -> int:
    """See the module's docstring."""
    loads = Loads(order["loads"], ours=order["ours"])
    with tempfile.TemporaryDirectory() as folder:
        use_plugin(Path(folder), loads.lengths(), order["steps"])
        report: dict[str, Any] = {"engine": order["engine"], "runs": []}
        start = time.time()
        from sglang.srt.entrypoints.engine import Engine

        engine = Engine(**order["engine"])
        try:
            report["start_seconds"] = time.time() - start
            warm_up(engine)
            for number, about in enumerate(loads.data):
                call = loads.call(number, depth_first=order["depth_first"])
                report["runs"].append(play(engine, call, loads.lengths(), about))
                report["state"] = internal_state(engine)
                target.write_text(json.dumps(report))
        finally:
            engine.shutdown()
    return 0


def warm_up(engine: Any) -> None:
    """A few requests of no workload: compiled kernels, allocator, autotuning."""
    prompts = [[1000 + i + j for j in range(40 * (i + 1))] for i in range(8)]
    parameters = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    engine.generate(
        input_ids=prompts, sampling_params=[parameters] * 8, rid=[f"warm{n}" for n in range(8)]
    )
    engine.flush_cache()


def play(engine: Any, call: dict[str, Any], lengths: dict[str, int], data: Any) -> dict[str, Any]:
    """One workload: its time, and whether every output had its true length."""
    engine.flush_cache()
    began = time.time()
    start = time.perf_counter()
    answers = engine.generate(**call)
    seconds = time.perf_counter() - start
    made = [answer["meta_info"]["completion_tokens"] for answer in answers]
    true = [lengths[rid] for rid in call["rid"]]
    tokens = int(data["prompt_tokens"].sum() + data["output_tokens"].sum())
    return {
        "about": json.loads(str(data["about"])),
        "began": began,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "wrong_lengths": sum(m != t for m, t in zip(made, true, strict=True)),
        "cached_tokens": sum(a["meta_info"]["cached_tokens"] for a in answers),
        "retractions": sum(a["meta_info"].get("num_retractions", 0) for a in answers),
    }


def internal_state(engine: Any) -> dict[str, Any]:
    """What the policy says of itself; empty for stock."""
    states = engine.get_server_info().get("internal_states") or [{}]
    state: dict[str, Any] = states[0].get("blendserve") or {}
    state.pop("density", None)
    return state


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])))
