"""Chats beside a batch on a simulated GPU: SGLang's scheduler over a device that keeps time.

    python benchmark/online/simulate.py --requests 100000 --json out.json

The device is an H100 with Llama-3.1-8B (measured kernel times, `cost/kernel_tables`), prefill and
decode in one forward, nothing overlapped. Offline requests are drawn from traces, chats have the
lengths of azure_conv and come at random (Poisson) at shares of the engine's capacity for chats
alone. Cases, one process each: ``capacity`` (chats as a batch), ``alone`` (the batch), and
``beside_<share>``. Latencies are of the scheduler: from arrival to the end of the step that gives
the first token (``ttft``), and per token after it (``tpot``), seconds of the simulated clock.
``batch_to_alone``: time in which the batch alone computes as many tokens, over the time it took;
``batch_of_what_is_left``: that over 1 - share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator.kinds import make_workload
from sglang.srt.blendserve.simulator.length_traces import LengthTrace
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions

MODEL, DEVICE = "Llama-3.1-8B", "H100"
MOST_RUNNING = 1024


@dataclass
class ChatTimes:
    """When a chat came, had its first token and ended; seconds of the simulated clock."""

    came: float
    first: float = 0.0
    ended: float = 0.0
    tokens: int = 0


class Play:
    """One case: requests that are there, and chats that come."""

    def __init__(self, order: dict[str, Any]) -> None:
        from sglang.srt.blendserve.runtime.record.step_timer import StepTimer
        from sglang.srt.blendserve.settings import Settings
        from sglang.srt.blendserve.simulator.full_worker import Device, make_scheduler
        from sglang.srt.blendserve.simulator.virtual_plan import plan_in_virtual_time

        rng = np.random.default_rng(order["seed"])
        offline = make_workload(order["workload"], order["requests"], order["seed"], "shuffled")
        trace = LengthTrace.named("azure_conv")
        drawn = rng.integers(0, trace.prompt_tokens.size, order["chats"])
        self.chats = [
            (int(trace.prompt_tokens[at]), int(max(trace.output_tokens[at], 2))) for at in drawn
        ]
        self.prompts = offline.prompts()
        self.lengths = offline.output_tokens.tolist()
        self.limits = offline.max_tokens.tolist()
        if order["case"] == "capacity":  # the chats are the batch
            self.prompts = [self._words(rng, prompt) for prompt, _ in self.chats]
            self.lengths = [output for _, output in self.chats]
            self.limits = [4 * output for output in self.lengths]
            self.chats = []
        gaps = rng.exponential(1 / order["rate"], len(self.chats)) if order["rate"] else []
        self.due = np.cumsum(gaps).tolist()
        self.words = [self._words(rng, prompt) for prompt, _ in self.chats]
        n = len(self.lengths)
        self.rids = [job_ids.make_rid("simulated", n, at) for at in range(n)]
        lengths = dict(zip(self.rids, self.lengths, strict=True))
        lengths |= {f"chat-{at}": output for at, (_, output) in enumerate(self.chats)}
        machine = Machine.build(MODEL, DeviceSpec.named(DEVICE), "sequential", rates="tables")
        self.device = Device(machine.steps, lengths)
        options = BlendOptions(pace="marginal")
        longest = max(
            max(p.size + m for p, m in zip(self.prompts, self.limits, strict=True)),
            max((p + 4 * o for p, o in self.chats), default=0),
        )
        play = {
            "policy": "blendserve",
            "options": options.as_dict(),
            "chunk": options.chunk,
            "mixed": True,
            "context": longest + 64,
            "max_running": MOST_RUNNING,
        }
        self.folder = tempfile.TemporaryDirectory()
        self.scheduler = make_scheduler(Path(self.folder.name), machine, play, self.device)
        plan_in_virtual_time(self.scheduler, machine, options)
        self.idle = 0.0
        beside = self.scheduler.beside
        beside.targets = Settings(
            online_ttft=order["ttft"], online_tpot=order["tpot"]
        ).online_targets
        beside.times = type(beside.times)(machine.cost)
        beside.clock = self.now
        self.scheduler.step_timer = StepTimer(
            machine.cost, [beside.times], one_behind=False, clock=self.now
        )
        self.times: dict[str, ChatTimes] = {}
        self.marks: list[tuple[float, int, int]] = []
        self.parked = 0

    @staticmethod
    def _words(rng: np.random.Generator, tokens: int) -> Any:
        return rng.integers(1000, 30_000, tokens).astype(np.int32)

    def now(self) -> float:
        """Return the simulated clock, seconds."""
        return float(self.device.totals.seconds + self.idle)

    def run(self) -> dict[str, Any]:
        """Play until the batch has ended, or the last chat has."""
        from sglang.srt.blendserve.simulator.arrivals import _arrival

        scheduler = self.scheduler
        for rid, prompt, limit in zip(self.rids, self.prompts, self.limits, strict=True):
            scheduler.process_input_requests([_arrival(rid, prompt, int(limit))])
        ended = came = answered = offline_tokens = 0
        last_chat = len(self.chats)
        while ended < len(self.rids) and not (last_chat and answered == last_chat):
            while came < last_chat and self.due[came] <= self.now():
                rid = f"chat-{came}"
                self.times[rid] = ChatTimes(self.due[came])
                limit = 4 * self.chats[came][1]
                scheduler.process_input_requests([_arrival(rid, self.words[came], limit)])
                came += 1
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
            if batch:
                reqs = list(batch.reqs)
                offline_tokens += self._offline_tokens(batch)
                scheduler.process_batch_result(batch, scheduler.run_batch(batch))
                for req in reqs:
                    chat = self.times.get(req.rid)
                    if chat is not None and req.output_ids and not chat.first:
                        chat.first = self.now()
                    if req.finished():
                        if chat is None:
                            ended += 1
                        else:
                            chat.ended, chat.tokens = self.now(), len(req.output_ids)
                            answered += 1
                self.marks.append((self.now(), offline_tokens, ended))
            elif came < last_chat and not scheduler.parked:
                self.idle += max(self.due[came] - self.now(), 0.0)
            scheduler.last_batch = batch
        self.parked = scheduler.beside.parking.count
        return self.figures()

    def _offline_tokens(self, batch: Any) -> int:
        if batch.forward_mode.is_decode():
            return sum(req.rid not in self.times for req in batch.reqs)
        pairs = zip(batch.reqs, batch.extend_lens, strict=True)
        return sum(int(tokens) for req, tokens in pairs if req.rid not in self.times)

    def figures(self) -> dict[str, Any]:
        """Return latencies, and how far the batch was when."""
        marks = np.array(self.marks, dtype=float)
        begin, end = np.searchsorted(marks[:, 0], [0.1 * marks[-1, 0], 0.9 * marks[-1, 0]])
        first, last = marks[begin], marks[min(end, len(marks) - 1)]
        found: dict[str, Any] = {
            "seconds": marks[-1, 0],
            "steps": len(marks),
            "batch_tokens": marks[-1, 1],
            "requests_per_second": (last[2] - first[2]) / (last[0] - first[0]),
            "progress": marks[:: max(len(marks) // 500, 1), :2].tolist(),
            "parked": self.parked,
            "retractions": self.scheduler.retractions,
        }
        done = [chat for chat in self.times.values() if chat.ended]
        if done:
            ttft = [chat.first - chat.came for chat in done]
            tpot = [(c.ended - c.first) / (c.tokens - 1) for c in done if c.tokens > 1]
            for name, values in (("ttft", ttft), ("tpot", tpot)):
                for q in (50, 95, 99):
                    found[f"{name}_p{q}_seconds"] = float(np.percentile(values, q))
            found["chats"] = len(done)
        return found


def case(order: dict[str, Any]) -> dict[str, Any]:
    """Play one case in a process of its own; SGLang patches its classes once per process."""
    done = subprocess.run(
        [sys.executable, __file__, "--play", json.dumps(order)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line; play all cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="trace1")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--chats", type=int, default=3000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5])
    parser.add_argument("--ttft", default="500", help="as --blendserve-online-ttft")
    parser.add_argument("--tpot", default="50", help="as --blendserve-online-tpot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("out/online_simulated.json"))
    parser.add_argument("--play", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.play:
        import torch

        with torch.no_grad():
            print(json.dumps(Play(json.loads(given.play)).run()))
        return 0
    about = {k: v for k, v in vars(given).items() if k not in ("json", "play")}
    about |= {"model": MODEL, "device": DEVICE, "engine": "sequential", "rates": "tables"}
    base = {**about, "rate": 0.0, "chats": 0}
    cases: dict[str, Any] = {}
    given.json.parent.mkdir(parents=True, exist_ok=True)

    progress: list[Any] = []

    def note(name: str, found: dict[str, Any]) -> None:
        came_to = found.pop("progress")
        if name == "alone":
            progress.extend(came_to)
        cases[name] = found
        given.json.write_text(json.dumps({**about, "cases": cases}, indent=1) + "\n")
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
        print(f"{name}: {shown}", flush=True)

    note("capacity", case({**base, "case": "capacity", "chats": given.chats}))
    note("alone", case({**base, "case": "alone"}))
    for share in given.shares:
        rate = share * cases["capacity"]["requests_per_second"]
        found = case({**base, "case": "beside", "rate": rate, "chats": given.chats})
        seconds, tokens = zip(*progress, strict=True)
        alone = float(np.interp(found["batch_tokens"], tokens, seconds))
        found["chats_per_second"] = rate
        found["batch_to_alone"] = alone / found["seconds"]
        found["batch_of_what_is_left"] = found["batch_to_alone"] / (1 - share)
        note(f"beside_{share:g}", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
