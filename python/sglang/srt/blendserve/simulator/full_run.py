"""Runs policies through SGLang's real scheduler, one process a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.calibration import Calibration
from sglang.srt.blendserve.simulator.fast import MAX_RUNNING, Totals
from sglang.srt.blendserve.simulator.fast_run import POLICIES
from sglang.srt.blendserve.simulator.machine import Machine
from sglang.srt.blendserve.simulator.options import BlendOptions, told_lengths
from sglang.srt.blendserve.simulator.peers import CHUNKS, CONSERVATIVENESS, peer_order
from sglang.srt.blendserve.simulator.result import Result
from sglang.srt.blendserve.simulator.workload import Ints, Workload

_WORKER = "sglang.srt.blendserve.simulator.full_worker"
_OWN_ORDER = ("dfs", "batchllm", "lpt-ewma")
"""Peers that order the requests themselves and leave SGLang at first come, first served."""


class FullRun:
    """One workload on one machine; `run` plays a policy over it."""

    def __init__(
        self,
        whole: Workload,
        machine: Machine,
        model: str,
        device: DeviceSpec,
        ranks: int = 1,
        calibration: Calibration | None = None,
        options: BlendOptions | None = None,
    ) -> None:
        """``model``, ``device``, ``ranks``, ``calibration``: what `machine` was built from.
        ``options``: of our policies, unless `run` is given others."""
        self.whole, self.machine = whole, machine
        self.mixed = True
        """Whether peers compute prompts beside decodes (--enable-mixed-chunk)."""
        self.options = options or BlendOptions()
        self.replica = whole.replica(machine.scale)
        self.prompts = self.replica.prompts()
        self._order: dict[str, Any] = {
            "model": model,
            "device": asdict(device),
            "calibration": (calibration or Calibration()).as_dict(),
            "ranks": ranks,
            "engine": machine.steps.engine,
            "rates": machine.rates,
            "scale": machine.scale,
            "kv_slots": round(machine.kv_slots * machine.scale),
            # SGLang keeps a table of max_running x context slots: no longer than it must be.
            "context": int((self.replica.prompt_tokens + self.replica.max_tokens).max()) + 64,
            "max_running": MAX_RUNNING,
        }

    def run(
        self,
        policy: str,
        *,
        chunks: Sequence[int] = CHUNKS,
        conservativeness: Sequence[float] = CONSERVATIVENESS,
        options: BlendOptions | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Result:
        """Play ``policy``; peers with each setting of their flags, of which the best counts.

        ``progress``: called with the number of requests that have ended since the last call.

        Raises ValueError for an unknown policy, RuntimeError if SGLang fails.
        """
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
        if policy in ("paper", "blendserve"):
            return self._ours(policy, options or self.options, progress)
        settings = product(chunks, conservativeness)
        return Result.best([self._peer(policy, c, share, progress) for c, share in settings])

    def _ours(
        self, policy: str, options: BlendOptions, progress: Callable[[int], None] | None
    ) -> Result:
        if policy == "paper":
            options = replace(options, pace="paper")
        if self.machine.belief is not None:
            raise ValueError("a wrong belief about a device: --fast alone")
        if options.known_ahead < 1 or (options.window and (options.told or not options.plan_ahead)):
            raise ValueError("requests that come later, or a window otherwise filled: --fast alone")
        n = self.replica.size
        told = told_lengths(self.replica, options.told)
        order = {
            "policy": "blendserve",
            "options": options.as_dict(),
            "chunk": options.chunk,
            "mixed": True,
        }
        # Only the marked requests of an offline job go to our pool.
        rids = [job_ids.make_rid("simulated", n, i) for i in range(n)]
        more = {} if told is None else {"told": told}
        return self._play(policy, order, np.arange(n), rids, more, progress)

    def _peer(
        self,
        policy: str,
        chunk: int,
        conservativeness: float,
        progress: Callable[[int], None] | None,
    ) -> Result:
        order = {
            "policy": "fcfs" if policy in _OWN_ORDER else policy,
            "chunk": chunk,
            "conservativeness": conservativeness,
            "mixed": self.mixed,
            "longest_first": policy == "lpt-ewma",
        }
        n = self.replica.size
        arrival = np.arange(n)
        if policy in ("dfs", "batchllm"):
            arrival = peer_order(policy, self.replica, PrefixTree.build(self.prompts))
        more = {"source": self.replica.source[arrival]}
        rids = [f"r{i}" for i in range(n)]
        result = self._play(policy, order, arrival, rids, more, progress)
        result.conservativeness = conservativeness
        return result

    def _play(
        self,
        policy: str,
        order: dict[str, Any],
        arrival: Ints,
        rids: list[str],
        more: dict[str, Any],
        progress: Callable[[int], None] | None,
    ) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "order.npz", Path(folder) / "out.json"
            np.savez(
                source,
                order=json.dumps(self._order | order),
                rids=np.array([rids[i] for i in arrival]),
                tokens=np.concatenate([self.prompts[i] for i in arrival]),
                prompt_tokens=self.replica.prompt_tokens[arrival],
                output_tokens=self.replica.output_tokens[arrival],
                max_tokens=self.replica.max_tokens[arrival],
                **more,
            )
            with (Path(folder) / "errors.txt").open("w+") as errors:
                worker = subprocess.Popen(
                    [sys.executable, "-m", _WORKER, str(source), str(target)],
                    env={**os.environ, "SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
                with worker:  # its end is waited for, also after Ctrl-C
                    assert worker.stdout is not None
                    for line in worker.stdout:
                        if progress is not None and line.strip().isdigit():
                            progress(int(line))
                errors.seek(0)
                if worker.returncode or not target.exists():
                    raise RuntimeError(f"{policy}: the scheduler failed:\n{errors.read()[-2000:]}")
            answer = json.loads(target.read_text())
        totals = Totals(**answer["totals"])
        spent = answer["scheduler_seconds"]
        chunk = order["chunk"]
        return Result.of(policy, self.whole, self.replica, self.machine, totals, spent, chunk)
