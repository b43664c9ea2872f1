"""What the policy adds to a scheduling step: a scheduler without a model, timed part by part.

    python benchmark/runtime_cost.py --pool 10000 100000 --steps 2000

The scheduler's own methods run over a real request pool, radix cache, slot allocator and step
recorder, with 256 requests in flight; only the forward pass is left out. Every step decodes one
token of each running request, ends those that are done and starts what the policy chooses. Timing
begins when the KV cache is full. Times are of the processor (`time.thread_time`), so that other
work on the machine does not count. Parts of a step, in milliseconds:

- progress: read off the requests in flight how far they are, and note which have ended
- select: choose what joins the step, without the look-ups in the cache
- look-up: how much of the prompts in line is cached
- leave: decide what ended requests leave in the prefix cache, and remove the rest from it
- evict: evictions from the prefix cache, annotations included, and giving back the slots
- record: read the step for the step trace and write its row (only with --blendserve-trace)
- collector: Python's garbage collector, in all of the step; not part of the others

The paper gives 0.08 ms on average and 0.23 ms at the 99th percentile for tree operations, which
are look-up, leave and evict here. A second run has SGLang's own cache, for comparison. Where a
pool's memory goes and how long an arrival takes is measured before the steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import time
from array import array
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.policy.named import make_step_policy
from sglang.srt.blendserve.pool.request_pool import RequestPool
from sglang.srt.blendserve.runtime.beside_online import BesideOnline
from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache
from sglang.srt.blendserve.runtime.receiver import OfflineReceiver
from sglang.srt.blendserve.runtime.record.row_file import RowFile
from sglang.srt.blendserve.runtime.record.step_record import StepRecord, StepRecorder
from sglang.srt.blendserve.runtime.request_progress import note_progress
from sglang.srt.blendserve.runtime.scheduler import BlendScheduler
from sglang.srt.blendserve.settings import Settings

PARTS = ("progress", "select", "look-up", "leave", "evict", "record", "collector")
CACHES = {"blendserve": BlendRadixCache, "sglang": RadixCache}
TREE = ("look-up", "leave", "evict")
OLD = version("sglang") == "0.5.17"
"""Whether requests keep their slots, and the cache ends them, as they did before 0.5.23."""


def held(req: Req) -> Any:
    """What names the slots that ``req`` holds."""
    return req if OLD else req.kv


def matched_slots(cache: RadixCache, match: Any) -> torch.Tensor:
    """The slots of the tokens that ``match`` has found in ``cache``."""
    return match.device_indices if OLD else cache.path_device_indices(match.last_device_node)


def lock(cache: RadixCache, req: Req) -> None:
    """Keep what ``req`` uses of ``cache``."""
    if OLD:
        cache.inc_lock_ref(req.last_node)
    else:
        req.lock = cache.lock(req.last_node)


class Stopwatch:
    """Adds up seconds by part, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.now = dict.fromkeys(PARTS, 0.0)
        self._collecting = 0.0
        gc.callbacks.append(self._collects)

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        """Tell the garbage collector's time apart: it strikes whoever allocates next."""
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self.now["collector"] += time.thread_time() - self._collecting

    def timed(self, part: str, function: Any, instead_of: str | None = None) -> Any:
        """``function``, its time added to ``part`` (and taken from the part that calls it)."""

        def call(*args: Any, **kwargs: Any) -> Any:
            collector, began = self.now["collector"], time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - began - (self.now["collector"] - collector)
                self.now[part] += took
                if instead_of is not None:
                    self.now[instead_of] -= took

        return call

    def next_step(self) -> None:
        self.steps.append(self.now)
        self.now = dict.fromkeys(PARTS, 0.0)

    def stop(self) -> None:
        gc.callbacks.remove(self._collects)


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

    def __init__(self, kind: type[RadixCache], args: argparse.Namespace, trace: Path) -> None:
        cost = CostModel(ModelSpec.named("Llama-3-8B"), DeviceSpec.named("A100-80G"))
        slots, chunk = args.slots, args.chunk
        allocator = TokenToKVPoolAllocator(slots, torch.float16, "cpu", None, need_sort=False)
        self.table = ReqToTokenPool(args.batch, 16_384, "cpu", enable_memory_saver=False)
        self.tree_cache = kind(CacheInitParams(False, self.table, allocator, 1))
        self.token_to_kv_pool_allocator = allocator
        self.max_total_num_tokens = slots
        self.pool = RequestPool(cost, slots)
        if isinstance(self.tree_cache, BlendRadixCache):
            self.tree_cache.follow(self.pool)
        self.offline_receiver = OfflineReceiver(self.pool)
        self.step_policy = make_step_policy(self.pool, "marginal", max_tokens=chunk)
        self.batch, self.page_size, self.is_mixed_chunk = args.batch, 1, True
        self.waiting_queue: list[Req] = []
        self.chunked_req, self.chunked_prefill_size = None, chunk
        self.new_token_ratio_tracker = argparse.Namespace(current=0.5)
        self.running = argparse.Namespace(reqs=[], batch_is_full=False)
        self.forward_ct = self.retractions = 0
        self.beside = BesideOnline(self, Settings().online_targets, cost)
        self.recorder = StepRecorder(self, [RowFile(trace, StepRecord)])
        self.watch = Stopwatch()
        if isinstance(self.tree_cache, BlendRadixCache):
            for name in ("worth_keeping", "drop_behind"):
                added = getattr(self.tree_cache, name)
                setattr(self.tree_cache, name, self.watch.timed("leave", added))
            ahead = self.watch.timed("evict", self.tree_cache.evict_ahead, "select")
            self.tree_cache.evict_ahead = ahead
        self.evicted = self.no_room = 0

    def get_num_allocatable_reqs(self, running: int) -> int:
        return self.batch - running

    def step(self) -> None:
        """One pass of the scheduler, and the forward pass's effects."""
        watch = self.watch
        watch.timed("progress", note_progress)(self.pool)
        self._feed = watch.timed("select", super()._feed)
        self.cached_tokens = watch.timed("look-up", super().cached_tokens, "select")
        self._feed(self.running, None)
        new, self.waiting_queue = self.waiting_queue, []
        self.chunked_prefill_size = self.step_policy.max_tokens
        batch = argparse.Namespace(
            reqs=[*new, *self.running.reqs],
            forward_mode=ForwardMode.MIXED if new else ForwardMode.DECODE,
            decoding_reqs=self.running.reqs,
            extend_lens=[len(req.origin_input_ids) for req in new],
            prefill_stats=None,
        )
        watch.timed("record", self.recorder.launched)(batch)
        self.forward_ct += 1
        for req in new:
            self.start(req)
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
        prefix = matched_slots(cache, match)
        own = self.alloc(len(key) - len(prefix))
        if own is None:
            cache.dec_lock_ref(match.last_device_node)
            self.pool.put_back(req.blendserve)
            self.no_room += 1
            return
        slots = torch.cat((prefix, own))
        req.last_node = cache.insert(InsertParams(key=key, value=slots)).last_device_node
        lock(cache, req)
        cache.dec_lock_ref(match.last_device_node)
        held(req).cache_protected_len = len(key)
        self.table.alloc([req])
        self.table.req_to_token[held(req).req_pool_idx, : len(key)] = slots.to(torch.int32)
        self.running.reqs.append(req)

    def decode(self) -> None:
        """One token of every running request."""
        reqs = self.running.reqs
        slots = self.alloc(len(reqs))
        while slots is None:  # retract the last, as a full cache makes SGLang do
            self.release(reqs[-1], is_insert=False)
            self.pool.put_back(reqs.pop().blendserve)
            slots = self.alloc(len(reqs))
        rows = [held(req).req_pool_idx for req in reqs]
        columns = [len(req.origin_input_ids) + len(req.output_ids) for req in reqs]
        self.table.req_to_token[rows, columns] = slots.to(torch.int32)
        for req in reqs:
            req.output_ids.append(7)
        ended = [req for req in reqs if len(req.output_ids) >= req.true_output]
        if ended:
            self.running.reqs = [req for req in reqs if len(req.output_ids) < req.true_output]
        # Slots of all that end in a step are freed together, as SGLang does.
        self.token_to_kv_pool_allocator.free_group_begin()
        for req in ended:
            req.finished_reason = FINISH_LENGTH(len(req.output_ids))
            self.release(req, is_insert=True)
        self.token_to_kv_pool_allocator.free_group_end()

    def release(self, req: Req, is_insert: bool) -> None:
        """Give the memory of ``req`` back; what is worth it stays in the cache."""
        tokens = len(req.origin_input_ids) + len(req.output_ids)
        cache = self.tree_cache
        if OLD:
            cache.cache_finished_req(req, is_insert=is_insert, kv_len_to_handle=tokens)
        else:  # as `release_kv_cache` has it
            if is_insert:
                req.refresh_fill_ids()
                cache.checkpoint(req, up_to=tokens)
            cache.free_kv_row(req.kv, [(req.kv.cache_protected_len, tokens)])
            cache.unlock(req.lock)
            req.lock = None
            cache.on_release(req, checkpointed=is_insert)
        self.table.free(req)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(engine: Engine, pool: int, seed: int) -> dict[str, Any]:
    """Let ``pool`` requests arrive; what they hold and how long that takes."""
    prompts, output = workload(pool, seed)
    tokens = sum(prompt.size for prompt in prompts)
    before = resident_bytes()
    reqs = []
    for index, prompt in enumerate(prompts):
        parameters = SamplingParams(max_new_tokens=8000)
        tokens_q = array("q", prompt.tolist())
        reqs.append(Req(job_ids.make_rid("cost", pool, index), "", tokens_q, parameters))
        reqs[-1].true_output = int(output[index])
    made = resident_bytes()
    times = np.zeros(pool)
    for index, req in enumerate(reqs):
        began = time.thread_time()
        engine.offline_receiver.take(req)
        times[index] = time.thread_time() - began
    taken = resident_bytes()
    began = time.perf_counter()
    engine.pool.plan_if_due(quiet=True)
    seconds = time.perf_counter() - began
    return {
        "mean_prompt_tokens": round(tokens / pool, 1),
        "bytes_per_request": {
            "of SGLang": round((made - before) / pool),
            "of the pool": round((taken - made) / pool),
            "of the plan": round((resident_bytes() - taken) / pool),
        },
        "take_microseconds": {
            "mean": round(1e6 * float(times.mean()), 2),
            "p99": round(1e6 * float(np.quantile(times, 0.99)), 2),
            "max": round(1e6 * float(times.max()), 2),
        },
        "plan_seconds": round(seconds, 3),
    }


def measure(kind: type[RadixCache], pool: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fill the cache, then time ``args.steps`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(kind, args, Path(folder, "steps.csv"))
        arrival = fill(engine, pool, args.seed)
        warm = 0
        while engine.token_to_kv_pool_allocator.available_size() > args.slots // 16 and warm < 5000:
            engine.step()
            warm += 1
        engine.watch.steps.clear()
        started = len(engine.pool)
        for _ in range(args.steps):
            engine.step()
        engine.watch.stop()
    steps = engine.watch.steps
    table: dict[str, Any] = {}
    sums = {part: (part,) for part in PARTS}
    sums |= {"tree": TREE, "total": PARTS[:5], "total with record": PARTS[:6]}
    for part, summands in sums.items():
        milliseconds = 1e3 * np.array([sum(s[p] for p in summands) for s in steps])
        table[part] = {
            "mean": round(float(milliseconds.mean()), 4),
            "median": round(float(np.median(milliseconds)), 4),
            "p99": round(float(np.quantile(milliseconds, 0.99)), 4),
            "max": round(float(milliseconds.max()), 4),
        }
    return {
        "cache": kind.__name__,
        "pool": pool,
        "arrival": arrival,
        "warm_up_steps": warm,
        "steps": len(steps),
        "started": started - len(engine.pool),
        "running_at_end": len(engine.running.reqs),
        "evictable_leaves_at_end": len(engine.tree_cache.evictable_leaves),
        "evicted_tokens": engine.evicted,
        "not_started_for_memory": engine.no_room,
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
    parser.add_argument(
        "--cache", nargs="+", choices=CACHES, default=[*CACHES], help="whose prefix cache (both)"
    )
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for pool in args.pool:
        for name in args.cache:
            results.append(measure(CACHES[name], pool, args))
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
