"""Random arrivals and aborts beside a batch, through SGLang's scheduler on a simulated GPU.

    python benchmark/online/storm.py --chats 10000 --json out.json

Chats come alone, at random and in bursts; a quarter of them is aborted somewhere between their
arrival and their end, and so is a twentieth of the offline requests. The KV cache is small and the
targets tight, so that requests are parked, given back and retracted all the time. At the end
nothing may be missing: every request that was not aborted has all of its tokens, every KV slot and
every row is free or in the prefix cache, none twice, and nobody holds a lock.

The exit status is 1, with what was found, if that does not hold.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions

KV_SLOTS, MOST_RUNNING = 12_000, 64
OFFLINE_ABORTED, CHATS_ABORTED = 0.05, 0.25


@dataclass(order=True)
class Event:
    """Something that happens at a second of the simulated clock: a request comes, or is aborted."""

    at: float
    rid: str
    aborts: bool = field(compare=False)


@dataclass
class Asked:
    """A request: its prompt's token ids and how many tokens the answer has."""

    prompt: Any
    output: int


class Storm:
    """One run over a scheduler of SGLang's with the policy."""

    def __init__(self, chats: int, offline: int, seed: int, *, ttft: str, tpot: str) -> None:
        from sglang.srt.blendserve.runtime.record.step_timer import StepTimer
        from sglang.srt.blendserve.settings import Settings
        from sglang.srt.blendserve.simulator.full_worker import Device, make_scheduler
        from sglang.srt.blendserve.simulator.virtual_plan import plan_in_virtual_time

        rng = np.random.default_rng(seed)
        self.asked: dict[str, Asked] = {}
        self.events: list[Event] = []
        prefixes = [self._words(rng, 200) for _ in range(30)]
        for at in range(offline):
            prompt = np.concatenate([prefixes[at % 30], self._words(rng, rng.integers(10, 400))])
            rid = job_ids.make_rid("storm", offline, at)
            self.asked[rid] = Asked(prompt, int(rng.integers(5, 200)))
        gaps = rng.exponential(rng.choice([1e-9, 0.02, 0.3], chats, p=[0.3, 0.5, 0.2]))
        for at, came in enumerate(np.cumsum(gaps)):
            rid = f"chat-{at:06}"
            self.asked[rid] = Asked(
                self._words(rng, rng.integers(10, 500)), int(rng.integers(2, 60))
            )
            self.events.append(Event(float(came), rid, aborts=False))
            if rng.random() < CHATS_ABORTED:
                after = came + rng.exponential(0.2)
                self.events.append(Event(float(after), rid, aborts=True))
        last = float(gaps.sum())
        for rid in list(self.asked)[:offline]:
            if rng.random() < OFFLINE_ABORTED:
                self.events.append(Event(float(rng.uniform(0, last)), rid, aborts=True))
        heapq.heapify(self.events)
        machine = Machine.build(
            "Llama-3.1-8B", DeviceSpec.named("A100-80G"), "sequential", rates="tables",
            kv_slots=KV_SLOTS,
        )  # fmt: skip
        lengths = {rid: one.output for rid, one in self.asked.items()}
        self.device = Device(machine.steps, lengths)
        options = BlendOptions(pace="marginal", chunk=512)
        play = {
            "policy": "blendserve",
            "options": options.as_dict(),
            "chunk": 512,
            "mixed": True,
            "context": 2048,
            "max_running": MOST_RUNNING,
        }
        self.folder = tempfile.TemporaryDirectory()
        self.scheduler = make_scheduler(Path(self.folder.name), machine, play, self.device)
        plan_in_virtual_time(self.scheduler, machine, options)
        beside = self.scheduler.beside
        beside.targets = Settings(online_ttft=ttft, online_tpot=tpot).online_targets
        beside.times = type(beside.times)(machine.cost)
        beside.clock = self.now
        self.scheduler.step_timer = StepTimer(
            machine.cost, [beside.times], one_behind=False, clock=self.now
        )
        self.idle = 0.0
        self.tokens: dict[str, int] = {}
        self.aborted: set[str] = set()
        self.steps = 0

    @staticmethod
    def _words(rng: np.random.Generator, tokens: int) -> Any:
        return rng.integers(1000, 30_000, tokens).astype(np.int32)

    def now(self) -> float:
        """Return the simulated clock, seconds."""
        return float(self.device.totals.seconds + self.idle)

    def run(self) -> list[str]:
        """Play until nothing is left; return what is wrong."""
        from sglang.srt.managers.io_struct import AbortReq

        from sglang.srt.blendserve.simulator.arrivals import _arrival

        scheduler = self.scheduler
        for rid, one in self.asked.items():
            if not rid.startswith("chat-"):
                scheduler.process_input_requests([_arrival(rid, one.prompt, 256)])
        idle_passes = 0
        while idle_passes < 1000:
            while self.events and self.events[0].at <= self.now():
                event = heapq.heappop(self.events)
                if not event.aborts:
                    prompt = self.asked[event.rid].prompt
                    scheduler.process_input_requests([_arrival(event.rid, prompt, 64)])
                elif event.rid not in self.tokens:
                    self.aborted.add(event.rid)
                    scheduler.abort_request(AbortReq(rid=event.rid))
            plan = scheduler.get_next_batch_to_run(
                running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
            )
            scheduler.running_batch, batch = plan.running_batch, plan.batch_to_run
            scheduler.last_batch = batch
            if batch:
                idle_passes = 0
                self._step(batch)
            elif self.events:
                self.idle += max(self.events[0].at - self.now(), 0.001)
            else:
                idle_passes += 1
                if scheduler.is_fully_idle():
                    break
        return self.wrong()

    def _step(self, batch: Any) -> None:
        reqs = list(batch.reqs)
        self.scheduler.process_batch_result(batch, self.scheduler.run_batch(batch))
        self.steps += 1
        for req in reqs:
            if req.finished() and req.rid not in self.tokens:
                self.tokens[req.rid] = len(req.output_ids)

    def wrong(self) -> list[str]:
        """Return what does not add up."""
        found = []
        whole = {rid for rid in self.asked if rid not in self.aborted}
        if missing := whole - self.tokens.keys():
            found.append(f"{len(missing)} requests have no answer, {sorted(missing)[0]} for one")
        short = [r for r in whole & self.tokens.keys() if self.tokens[r] != self.asked[r].output]
        if short:
            found.append(f"{len(short)} answers have another length, {short[0]} for one")
        scheduler = self.scheduler
        slots, rows = scheduler.kv_cache.obtainable, scheduler.req_to_token_pool.available_size()
        if slots != KV_SLOTS:
            found.append(f"{KV_SLOTS - slots} KV slots are lost")
        if rows != scheduler.req_to_token_pool.size:
            found.append(f"{scheduler.req_to_token_pool.size - rows} rows are lost")
        if locked := scheduler.tree_cache.protected_size():
            found.append(f"{locked} tokens of the prefix cache are locked")
        allocator = scheduler.token_to_kv_pool_allocator
        free = np.concatenate([allocator.free_pages.numpy(), allocator.release_pages.numpy()])
        if np.unique(free).size != free.size:
            found.append(f"{free.size - np.unique(free).size} slots are free twice")
        if not scheduler.is_fully_idle():
            found.append("the scheduler is not idle")
        return found

    def figures(self) -> dict[str, Any]:
        """Return what happened."""
        parking = self.scheduler.beside.parking
        return {
            "steps": self.steps,
            "answered": len(self.tokens.keys() - self.aborted),
            "aborted": len(self.aborted),
            "parked_in_all": parking.count,
            "retractions": self.scheduler.retractions,
            "simulated_seconds": self.now(),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line; run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--offline", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ttft", default="60", help="as --blendserve-online-ttft")
    parser.add_argument("--tpot", default="12", help="as --blendserve-online-tpot")
    parser.add_argument("--json", type=Path, default=Path("out/online_storm.json"))
    given = parser.parse_args(argv)
    import torch

    with torch.no_grad():
        storm = Storm(given.chats, given.offline, given.seed, ttft=given.ttft, tpot=given.tpot)
        wrong = storm.run()
    about = {k: v for k, v in vars(given).items() if k != "json"}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps({**about, **storm.figures(), "wrong": wrong}, indent=1) + "\n")
    print(json.dumps(storm.figures()))
    for one in wrong:
        print(f"wrong: {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
