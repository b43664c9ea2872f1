"""The peers: orders over the whole queue, admitted by SGLang's rule.

SGLang admits a request if its prompt and min(max_tokens, 4096) fit beside what it reserves for the
running ones, min(max_tokens - generated, 4096) times a ratio that falls from 0.7 to 0.1 over 600
decode steps and rises after a retraction (`PrefillAdder`, `NewTokenRatioTracker`).
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.planner.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.fast import MAX_RUNNING, FastEngine
from sglang.srt.blendserve.simulator.workload import Workload

Ints = NDArray[np.int64]

PEERS = ("fcfs", "lpm", "dfs-weight", "lof", "random", "dfs", "lpt-ewma", "batchllm")
"""SGLang's own five, client-side depth-first order, and two from the literature."""

CHUNKS = (512, 1024, 2048, 4096, 8192)
"""Chunk sizes that are tried for a peer."""

_CLIP = 4096
_RATIO, _LEAST_RATIO = 0.7, 0.7 * 0.14
_DECAY_STEPS = 600
_RETRACT_STEPS = 20
_EWMA = 0.1
_PROFILED = 0.01


def peer_order(name: str, workload: Workload, tree: PrefixTree) -> Ints:
    """(n,) the order in which a peer tries requests. Raises ValueError for an unknown name."""
    n = workload.size
    if name in ("fcfs", "lpm"):
        # SGLang's lpm is first come, first served above 128 waiting requests.
        return np.arange(n)
    if name == "random":
        return np.random.default_rng([workload.seed, 5]).permutation(n)
    if name == "lof":
        return np.argsort(-workload.max_tokens, kind="stable")
    if name == "dfs":
        return tree.leaf_requests
    if name == "dfs-weight":
        # Cached prefixes with more waiting requests first; the rest follows in depth-first order.
        sorted_tree, _ = tree.reordered(-(tree.leaf_end - tree.leaf_start).astype(np.float64))
        return sorted_tree.leaf_requests
    if name == "batchllm":
        return _decode_ratio_order(workload, tree)
    raise ValueError(f"unknown peer {name!r}; known: {', '.join(PEERS)}")


def _decode_ratio_order(workload: Workload, tree: PrefixTree) -> Ints:
    """BatchLLM: prefix groups by decode tokens over prefill tokens, most decode first.

    Decode lengths are the means of each source's profiled requests (1 % of it).
    """
    profiled = np.zeros(workload.size)
    for source in range(len(workload.sources)):
        members = np.flatnonzero(workload.source == source)
        sample = members[:: max(round(1 / _PROFILED), 1)]
        profiled[members] = workload.output_tokens[sample].mean() if sample.size else 0.0
    decode = tree.leaf_sum(profiled)
    prefill = tree.subtree_sum(tree.segment)
    ordered, _ = tree.reordered(-decode / np.maximum(prefill, 1))
    return ordered.leaf_requests


class QueuePolicy:
    """Requests of one queue in a given order, with a fixed chunk of tokens per step."""

    def __init__(self, order: Ints, workload: Workload, chunk: int, scale: float = 1) -> None:
        self._queue = deque(order.tolist())
        self._cap: list[int] = np.minimum(workload.max_tokens, round(_CLIP / scale)).tolist()
        self._chunk = chunk
        self._ratio = _RATIO
        self._decay = (_RATIO - _LEAST_RATIO) / _DECAY_STEPS * scale
        self._retract_steps = _RETRACT_STEPS / scale
        self._limits: list[int] = workload.max_tokens.tolist()
        self._full = False
        self._retracted_now = False

    def choose(self, engine: FastEngine) -> int:
        """Admit from the head of the queue while the rule allows it."""
        running = len(engine.running)
        budget = max(self._chunk - running, 1)
        self._decay_ratio(engine)
        if not self._full and self._queue:
            self._admit(engine, budget)
        return budget

    def finished(self, request: int, output_tokens: int) -> None:
        self._full = False

    def retracted(self, request: int, generated: int) -> None:
        self._queue.append(request)
        self._full = False
        self._retracted_now = True

    def _decay_ratio(self, engine: FastEngine) -> None:
        if self._retracted_now:
            done = sum(engine.generated(r) for r in engine.running)
            caps = sum(self._limits[r] for r in engine.running)
            count = len(engine.running)
            self._ratio = min(1.0, (done + self._retract_steps * count) / (caps + 1))
            self._retracted_now = False
        elif engine.running:
            self._ratio = max(self._ratio - self._decay, _LEAST_RATIO)

    def _admit(self, engine: FastEngine, budget: int) -> None:
        spent = sum(engine.todo.values())
        room = float(engine.cache.slots - engine.cache.used)
        cap = self._cap
        room -= self._ratio * sum(
            min(self._limits[r] - engine.step_number + born, cap[r])
            for r, born in engine.running.items()
        )
        room -= sum(cap[r] for r in engine.starting)
        while self._queue and spent < budget:
            request = self._next()
            uncached = engine.prompt[request] - engine.cache.hit(request)
            need = uncached + engine.generated(request) + cap[request]
            waits = len(engine.running) + len(engine.starting)
            if waits and (need >= room or waits >= MAX_RUNNING):
                self._full = True
                break
            used = engine.cache.used
            if not engine.start(request):
                self._full = True
                break
            self._drop()
            spent += engine.todo[request]
            room -= engine.cache.used - used + cap[request]

    def _next(self) -> int:
        return self._queue[0]

    def _drop(self) -> None:
        self._queue.popleft()


class EwmaPolicy(QueuePolicy):
    """Longest output first, by an exponentially weighted mean of what each job has shown."""

    def __init__(self, workload: Workload, chunk: int, scale: float = 1) -> None:
        super().__init__(np.zeros(0, dtype=np.int64), workload, chunk, scale)
        self._source: list[int] = workload.source.tolist()
        self._mean = [256.0 / scale] * len(workload.sources)
        self._queues = [
            deque(np.flatnonzero(workload.source == s).tolist())
            for s in range(len(workload.sources))
        ]
        self._best = 0

    def finished(self, request: int, output_tokens: int) -> None:
        super().finished(request, output_tokens)
        source = self._source[request]
        self._mean[source] += _EWMA * (output_tokens - self._mean[source])

    def retracted(self, request: int, generated: int) -> None:
        super().retracted(request, generated)
        self._queues[self._source[self._queue.pop()]].appendleft(request)

    def choose(self, engine: FastEngine) -> int:
        self._pick()
        return super().choose(engine)

    def _pick(self) -> None:
        filled = [s for s, queue in enumerate(self._queues) if queue]
        if filled:
            self._best = max(filled, key=lambda s: self._mean[s])
        self._queue = self._queues[self._best]

    def _drop(self) -> None:
        super()._drop()
        if not self._queue:
            self._pick()
