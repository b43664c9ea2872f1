"""What the policy adds to a scheduling step: a scheduler without a model, timed part by part.

    python benchmark/runtime_cost.py --pool 10000 100000 --steps 2000

The scheduler's own methods run over a real request pool, radix cache and slot allocator, with 256
requests in flight and the KV cache full; only the forward pass is left out. Every step decodes
one token of each running request, ends those that are done and starts what the policy chooses.
Times are of the processor (`time.thread_time`), so that other work on the machine does not count.
Parts of a step, in milliseconds:

- progress: read off the requests in flight how far they are, and note which have ended
- select: choose what joins the step, without the look-ups in the cache
- look-up: how much of the prompts in line is cached
- evict: evictions from the prefix cache, annotations included

The paper gives 0.08 ms on average and 0.23 ms at the 99th percentile for tree operations, which
are look-up and evict here. A second run has SGLang's own cache, for comparison.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang.srt.blendserve.planner.cost_model import CostModel
from sglang.srt.blendserve.planner.device_spec import DeviceSpec
from sglang.srt.blendserve.planner.model_spec import ModelSpec
from sglang.srt.blendserve.planner.pacing import RatioPace
from sglang.srt.blendserve.planner.request_pool import PoolRequest, RequestPool
from sglang.srt.blendserve.planner.step_policy import StepPolicy
from sglang.srt.blendserve.runtime.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.scheduler import BlendScheduler

PARTS = ("progress", "select", "look-up", "evict")


class Stopwatch:
    """Adds up seconds by part, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.now = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Any, instead_of: str | None = None) -> Any:
        """``function``, its time added to ``part`` (and taken from the part that calls it)."""

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.now[part] += took
                if instead_of is not None:
                    self.now[instead_of] -= took

        return call

    def next_step(self) -> None:
        self.steps.append(self.now)
        self.now = dict.fromkeys(PARTS, 0.0)


def workload(count: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Prompts and true output lengths: a third each with long shared prefixes and short answers,
    with chat-like lengths, and with short prompts and long answers."""
    rng = np.random.default_rng(seed)
    topics = [rng.integers(0, 100_000, size=rng.integers(300, 900)) for _ in range(57)]
    prompts: list[np.ndarray] = []
    output = np.zeros(count, dtype=np.int64)
    for index in range(count):
        if index % 3 == 0:
            own = rng.integers(0, 100_000, size=rng.integers(40, 160))
            tokens, output[index] = np.concatenate((topics[index % 57], own)), rng.integers(2, 8)
        elif index % 3 == 1:
            tokens = rng.integers(0, 100_000, size=rng.integers(100, 1200))
            output[index] = 1 + rng.exponential(200)
        else:
            tokens = rng.integers(0, 100_000, size=rng.integers(20, 80))
            output[index] = 1 + rng.exponential(1200)
        prompts.append(tokens.astype(np.int32))
    return prompts, np.minimum(output, 8000)


class Engine(BlendScheduler):
    """The scheduler's side of the policy, with everything that it asks of the engine."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, kind: type[RadixCache], slots: int, batch: int, chunk: int) -> None:
        cost = CostModel(ModelSpec.named("Llama-3-8B"), DeviceSpec.named("A100-80G"))
        allocator = TokenToKVPoolAllocator(slots, torch.float16, "cpu", None, need_sort=False)
        self.tree_cache = kind(CacheInitParams(False, None, allocator, 1))
        self.token_to_kv_pool_allocator = allocator
        self.max_total_num_tokens = slots
        self.pool = RequestPool(cost, slots)
        if isinstance(self.tree_cache, BlendRadixCache):
            self.tree_cache.follow(self.pool)
        self.step_policy = StepPolicy(self.pool, RatioPace(cost, slots, chunk), max_tokens=chunk)
        self.batch, self.page_size, self.is_mixed_chunk = batch, 1, True
        self.waiting_queue: list[Req] = []
        self.chunked_req, self.chunked_prefill_size = None, chunk
        self.new_token_ratio_tracker = argparse.Namespace(current=0.5)
        self.running = argparse.Namespace(reqs=[], batch_is_full=False)
        self.watch = Stopwatch()
        self.evicted = self.no_room = 0

    def get_num_allocatable_reqs(self, running: int) -> int:
        return self.batch - running

    def add(self, index: int, prompt: np.ndarray, output: int) -> None:
        """Let a request wait that will give ``output`` tokens."""
        parameters = SamplingParams(max_new_tokens=8000)
        req = Req(str(index), "", array("q", prompt.tolist()), parameters)
        req.true_output = output
        req.blendserve = PoolRequest(str(index), prompt, 8000, payload=req)
        self.pool.add(req.blendserve)

    def step(self) -> None:
        """One pass of the scheduler, and the forward pass's effects."""
        watch = self.watch
        watch.timed("progress", self._note_progress)()
        self._feed = watch.timed("select", super()._feed)
        self._cached_tokens = watch.timed("look-up", super()._cached_tokens, "select")
        self._feed(self.running)
        for req in self.waiting_queue:
            self.start(req)
        self.waiting_queue = []
        self.chunked_prefill_size = self.step_policy.max_tokens
        self.decode()
        watch.next_step()

    def alloc(self, tokens: int) -> torch.Tensor | None:
        """Slots for ``tokens``, evicting what is short."""
        short = tokens - self.token_to_kv_pool_allocator.available_size()
        if short > 0:
            evict = self.watch.timed("evict", self.tree_cache.evict)
            self.evicted += evict(EvictParams(num_tokens=short)).num_tokens_evicted
        return self.token_to_kv_pool_allocator.alloc(tokens)

    def start(self, req: Req) -> None:
        """Compute the whole prompt of ``req``."""
        cache = self.tree_cache
        key = RadixKey(req.origin_input_ids)
        match = cache.match_prefix(MatchPrefixParams(key=key))
        cache.inc_lock_ref(match.last_device_node)
        own = self.alloc(len(key) - len(match.device_indices))
        if own is None:
            cache.dec_lock_ref(match.last_device_node)
            self.pool.put_back(req.blendserve)
            self.no_room += 1
            return
        slots = torch.cat((match.device_indices, own))
        req.last_node = cache.insert(InsertParams(key=key, value=slots)).last_device_node
        cache.inc_lock_ref(req.last_node)
        cache.dec_lock_ref(match.last_device_node)
        req.decoded = []
        self.running.reqs.append(req)

    def decode(self) -> None:
        """One token of every running request."""
        reqs = self.running.reqs
        slots = self.alloc(len(reqs))
        while slots is None:  # retract the last, as a full cache makes SGLang do
            req = reqs.pop()
            self.release(req)
            self.pool.put_back(req.blendserve)
            slots = self.alloc(len(reqs))
        for req, slot in zip(reqs, slots.split(1), strict=True):
            req.output_ids.append(7)
            req.decoded.append(slot)
        self.running.reqs = [req for req in reqs if not self.ended(req)]

    def ended(self, req: Req) -> bool:
        if len(req.output_ids) < req.true_output:
            return False
        req.finished_reason = FINISH_LENGTH(len(req.output_ids))
        self.release(req)
        return True

    def release(self, req: Req) -> None:
        """Leave prompt and output of ``req`` in the cache, unlocked."""
        tokens = req.origin_input_ids + array("q", req.output_ids)
        held = self.tree_cache.match_prefix(MatchPrefixParams(key=RadixKey(tokens)))
        new = len(tokens) - len(held.device_indices)
        own = torch.cat(req.decoded) if req.decoded else torch.zeros(0, dtype=torch.int64)
        if own.numel():
            slots = torch.cat((held.device_indices, own[own.numel() - new :]))
            self.tree_cache.insert(InsertParams(key=RadixKey(tokens), value=slots))
            self.token_to_kv_pool_allocator.free(own[: own.numel() - new])
        self.tree_cache.dec_lock_ref(req.last_node)
        req.decoded = []


def measure(kind: type[RadixCache], pool: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fill the cache, then time ``args.steps`` steps."""
    engine = Engine(kind, args.slots, args.batch, args.chunk)
    prompts, output = workload(pool, args.seed)
    for index, prompt in enumerate(prompts):
        engine.add(index, prompt, int(output[index]))
    began = time.perf_counter()
    engine.pool.make_plan()
    plan_seconds = time.perf_counter() - began
    warm = 0
    while engine.token_to_kv_pool_allocator.available_size() > args.batch * 2 and warm < 5000:
        engine.step()
        warm += 1
    engine.watch.steps.clear()
    for _ in range(args.steps):
        engine.step()
    steps = engine.watch.steps
    table: dict[str, Any] = {}
    sums = {part: (part,) for part in PARTS} | {"tree": PARTS[2:], "total": PARTS}
    for part, summands in sums.items():
        times = [sum(s[p] for p in summands) for s in steps]
        milliseconds = 1e3 * np.array(times)
        table[part] = {
            "mean": round(float(milliseconds.mean()), 4),
            "median": round(float(np.median(milliseconds)), 4),
            "p99": round(float(np.quantile(milliseconds, 0.99)), 4),
            "max": round(float(milliseconds.max()), 4),
        }
    return {
        "cache": kind.__name__,
        "pool": pool,
        "warm_up_steps": warm,
        "steps": len(steps),
        "running_at_end": len(engine.running.reqs),
        "evictable_leaves_at_end": len(engine.tree_cache.evictable_leaves),
        "evicted_tokens": engine.evicted,
        "not_started_for_memory": engine.no_room,
        "plan_seconds": round(plan_seconds, 3),
        "milliseconds": table,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pool", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--steps", type=int, default=2000, help="steps that are timed")
    parser.add_argument("--batch", type=int, default=256, help="requests in flight at most")
    parser.add_argument("--slots", type=int, default=500_000, help="KV tokens in the cache")
    parser.add_argument("--chunk", type=int, default=2048, help="prompt tokens in a step at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for pool in args.pool:
        for kind in (BlendRadixCache, RadixCache):
            results.append(measure(kind, pool, args))
            print(json.dumps(results[-1]), flush=True)
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k != "out"}
        machine = {"processor": platform.processor(), "python": platform.python_version()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({"settings": settings, "machine": machine, "runs": results}, indent=1)
        )


if __name__ == "__main__":
    main()
