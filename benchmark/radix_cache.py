"""Prefix caches side by side: SGLang's own of two releases, and the annotated one on each.

    python benchmark/radix_cache.py trace --requests 10000 --slots 200000 --out t.npz
    python benchmark/radix_cache.py play --trace t.npz --cache sglang --out a.json
    python benchmark/radix_cache.py play --trace t.npz --cache blendserve --out b.json
    python benchmark/radix_cache.py table a.json b.json --out benchmark/results/radix_cache.json

`trace` draws requests with the lengths and shared prefixes of the paper's first trace, all lengths
divided by --scale so that many nodes fit, and the order in which the plan starts them, from both
sides by turns. `play` drives one cache through that order, without a model: look up, lock, evict
what is short, insert the prompt, and at the end insert the output, as SGLang's scheduler does. It
needs SGLang of either release; with --cache sglang it runs without this package. The caches:

- sglang: the release's default (0.5.17: `RadixCache`; from 0.5.21 on: `UnifiedRadixCache`)
- blendserve: the annotated cache, which drops what nobody waits for when it is full
- blendserve-all: the same, but all that ends is inserted, so that it holds as many nodes as the
  default does

Times are of the processor, per operation, from when less than --spare of the cache is free
for the first time; the garbage collector is off meanwhile. Run one at a time, on one core.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import time
from array import array
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CACHES = ("sglang", "blendserve", "blendserve-all")


# --- the trace ---------------------------------------------------------------------------------


def make_trace(args: argparse.Namespace) -> None:
    """Draw the requests, plan them, and write prompts, outputs and the order of their starts."""
    from sglang.srt.blendserve.plan.scanner import Side
    from sglang.srt.blendserve.simulator.recipe import Recipe

    drawn = Recipe.parse(args.recipe).workload(args.requests, args.seed).replica(args.scale)
    prompts = drawn.prompts()
    pool, _ = make_pool(prompts, drawn.output_tokens.tolist(), args.slots)
    order = []
    while len(pool):
        for side in (Side.COMPUTE, Side.MEMORY):
            request = pool.current.peek(side)
            if request is not None:
                order.append(request.index)
                pool.start(request)
    np.savez_compressed(
        args.out,
        flat=np.concatenate(prompts),
        lengths=[prompt.size for prompt in prompts],
        outputs=drawn.output_tokens,
        order=order,
        slots=args.slots,
        name=f"{drawn.name}, lengths / {args.scale:g}",
    )
    shared = f"{drawn.size} requests, {drawn.sharing:.3f} of prompt tokens shared"
    print(f"{shared}, {int(drawn.prompt_tokens.sum())} prompt tokens")


def make_pool(prompts: list[Any], outputs: list[int], slots: int) -> tuple[Any, list[Any]]:
    """A planned pool of the requests, whose output lengths are known."""
    from sglang.srt.blendserve.pool.pool_request import PoolRequest
    from sglang.srt.blendserve.pool.request_pool import RequestPool
    from sglang.srt.blendserve.simulator.recipe import reference_cost

    pool = RequestPool(reference_cost(), slots)
    requests = []
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        requests.append(PoolRequest(f"r{number}", prompt, output, known_length=True))
        pool.add(requests[-1])
    pool.plan_if_due(quiet=True)
    return pool, requests


# --- one cache ---------------------------------------------------------------------------------


class Clock:
    """Processor time of operations, by name, while it runs."""

    def __init__(self) -> None:
        self.running = False
        self.nanoseconds: dict[str, list[int]] = {
            "match": [],
            "insert": [],
            "evict": [],
            "drop": [],
        }

    def time(self, name: str, operation: Callable[[], Any]) -> Any:
        began = time.thread_time_ns()
        result = operation()
        if self.running:
            self.nanoseconds[name].append(time.thread_time_ns() - began)
        return result

    def table(self) -> dict[str, dict[str, float]]:
        """Median, 99th percentile and mean of each operation, microseconds."""
        found = {}
        for name, values in self.nanoseconds.items():
            times = np.array(values or [0]) / 1e3
            found[name] = {
                "count": len(values),
                "median": round(float(np.median(times)), 2),
                "p99": round(float(np.quantile(times, 0.99)), 2),
                "mean": round(float(times.mean()), 2),
            }
        return found


class Player:
    """Drives one cache as SGLang's scheduler does."""

    def __init__(self, args: argparse.Namespace, slots: int) -> None:
        import torch
        from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator
        from sglang.srt.mem_cache.base_prefix_cache import (
            EvictParams,
            InsertParams,
            MatchPrefixParams,
        )
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        torch.set_num_threads(1)
        self._key = lambda tokens: RadixKey(tokens, None)
        self._match, self._insert = MatchPrefixParams, InsertParams
        self._evict, self._cat = EvictParams, torch.cat
        self.allocator = TokenToKVPoolAllocator(slots, torch.float16, "cpu", None, need_sort=False)
        table = SimpleNamespace(req_to_token=torch.zeros((1, 1), dtype=torch.int32), device="cpu")
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=table,
            token_to_kv_pool_allocator=self.allocator,
            page_size=1,
        )
        self.cache = make_cache(args.cache, params)
        self.new = hasattr(self.cache, "path_device_indices")  # since 0.5.22
        self.clock = Clock()
        self.spare = int(slots * args.spare)
        self.flights: dict[int, tuple[Any, Any, Any]] = {}
        self.hit_tokens = self.prompt_tokens = self.timed_starts = 0

    def look_up(self, tokens: array[int]) -> tuple[Any, Any]:
        """The slots that cache ``tokens``, and the node they end in."""

        def look_up() -> tuple[Any, Any]:
            found = self.cache.match_prefix(self._match(key=self._key(tokens)))
            node = found.last_device_node
            return self.cache.path_device_indices(node) if self.new else found.device_indices, node

        slots, node = self.clock.time("match", look_up)
        return slots, node

    def start(self, number: int, tokens: array[int], output: int) -> None:
        """Compute a prompt, and reserve the slots of its output."""
        found, node = self.look_up(tokens)
        found = found[: len(tokens) - 1]  # the last token is always computed
        lock = self._lock(node)
        self.hit_tokens += len(found)
        self.prompt_tokens += len(tokens)
        self.timed_starts += self.clock.running
        need = len(tokens) - len(found) + output
        short = need - self.allocator.available_size()
        if short > -self.spare and not self.clock.running:
            gc.collect()
            gc.disable()
            self.clock.running = True
        if short > 0:
            self.clock.time("evict", lambda: self.cache.evict(self._evict(num_tokens=short)))
        own = self.allocator.alloc(need)
        assert own is not None, "the requests in flight fill the cache"
        split = len(tokens) - len(found)
        self._put(tokens, self._cat((found, own[:split])), len(found))
        slots, node = self.look_up(tokens)
        self.flights[number] = slots, own[split:], self._lock(node)
        self._unlock(lock)

    def _put(self, tokens: array[int], slots: Any, cached: int, priority: int = 0) -> None:
        params = self._insert(
            key=self._key(tokens), value=slots, prev_prefix_len=cached, priority=priority
        )
        known = self.clock.time("insert", lambda: self.cache.insert(params)).prefix_len
        if hasattr(self.cache, "tree_core"):  # it has freed what was there already
            return
        self.allocator.free_segment(slots[cached:known], start_pos=cached)

    def finish(self, number: int, tokens: array[int], request: Any) -> None:
        """End a request; what it leaves is cached if it is worth it."""
        slots, own, lock = self.flights.pop(number)
        keep = None
        if request is not None:
            keep = self.clock.time("drop", lambda: self.cache.worth_keeping(request))
        if keep is None:
            whole = array("q", tokens)
            whole.extend(range(1, len(own) + 1))
            self._put(whole, self._cat((slots, own)), len(slots))
            if self.new:  # the leaf is split at the end of the prompt, which gets priority
                self._put(tokens, slots, len(slots), priority=1)
            self._unlock(lock)
            return
        self.allocator.free(own)
        self._unlock(lock)
        node = lock.node if self.new else lock
        self.clock.time("drop", lambda: self.cache.drop_behind(node, len(tokens), keep))

    def slots_lost(self) -> int:
        """Slots that are neither free nor cached nor reserved for an output; 0 if all is well."""
        reserved = sum(len(own) for _, own, _ in self.flights.values())
        cached = self.cache.evictable_size() + self.cache.protected_size()
        return int(self.allocator.size - self.allocator.available_size() - cached - reserved)

    def _lock(self, node: Any) -> Any:
        if self.new:
            return self.cache.lock(node)
        self.cache.inc_lock_ref(node)
        return node

    def _unlock(self, lock: Any) -> None:
        if self.new:
            self.cache.unlock(lock)
        else:
            self.cache.dec_lock_ref(lock)


def make_cache(name: str, params: Any) -> Any:
    """The cache of that name, of the installed release."""
    if name != "sglang":
        from sglang.srt.blendserve.runtime.cache.radix_cache import BlendRadixCache

        return BlendRadixCache(params)
    try:
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    except ImportError:
        from sglang.srt.mem_cache.radix_cache import RadixCache

        return RadixCache(params)
    if not hasattr(params, "tree_core_backend"):  # there in 0.5.17, but not the default
        from sglang.srt.mem_cache.radix_cache import RadixCache

        return RadixCache(params)
    params.tree_components = (ComponentType.FULL,)
    return UnifiedRadixCache(params)


def nodes_of(cache: Any) -> int | None:
    """The nodes of a Python tree, the root left out; None for the Rust core, which does not say."""
    if hasattr(cache, "tree_core"):
        return None
    stack, count = [cache.root_node], -1
    while stack:
        count += 1
        stack += stack.pop().children.values()
    return count


def play(args: argparse.Namespace) -> None:
    """Drive one cache through the trace, and write its figures."""
    trace = np.load(args.trace)
    slots = args.slots or int(trace["slots"])
    prompts = np.split(trace["flat"], np.cumsum(trace["lengths"])[:-1])
    outputs = trace["outputs"].tolist()
    player = Player(args, slots)
    pool, requests = None, [None] * len(prompts)
    if args.cache != "sglang":
        pool, requests = make_pool(prompts, outputs, slots)
        player.cache.follow(pool)
    running: list[tuple[int, int]] = []

    def end_first() -> None:
        number = heapq.heappop(running)[1]
        request = requests[number] if args.cache == "blendserve" else None
        player.finish(number, array("q", prompts[number].tolist()), request)
        if pool is not None:
            pool.finish(requests[number], outputs[number])

    for at, number in enumerate(trace["order"].tolist()):
        if player.timed_starts == args.starts:
            break
        while running and (len(running) == args.batch or running[0][0] <= at):
            end_first()
        player.start(number, array("q", prompts[number].tolist()), outputs[number])
        if pool is not None:
            pool.start(requests[number])
        heapq.heappush(running, (at + outputs[number], number))
    figures = {
        "sglang": version("sglang"),
        "cache": args.cache,
        "class": type(player.cache).__name__,
        "core": type(getattr(player.cache, "tree_core", player.cache)).__name__,
        "trace": str(trace["name"]),
        "nodes_at_end": nodes_of(player.cache),
        "slots": slots,
        "timed_starts": player.timed_starts,
        "prompt_tokens": player.prompt_tokens,
        "hit_tokens": player.hit_tokens,
        "slots_lost": player.slots_lost(),
        "evicted_needed_tokens": getattr(player.cache, "evicted_needed_tokens", None),
        "microseconds": player.clock.table(),
        "report_milliseconds": report_times(player.cache),
    }
    args.out.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures))


def report_times(cache: Any) -> dict[str, float] | None:
    """How long the annotated cache takes to say what it holds, after a plan of as many requests."""
    if not hasattr(cache, "use"):
        return None
    times = []
    for _ in range(20):
        began = time.thread_time()
        cache.use()
        times.append(1e3 * (time.thread_time() - began))
    return {"first": round(times[0], 2), "median": round(float(np.median(times)), 2)}


# --- the table ---------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    """Print the figures as a table, and write them together."""
    runs = [json.loads(path.read_text()) for path in args.files]
    print("| slots | nodes | cache | hits | match | insert | evict | drop |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for run in runs:
        held = run["nodes_at_end"]
        cells = [f"{run['slots']:,}", f"{held:,}" if held is not None else "-"]
        cells.append(f"{run['cache']} on {run['sglang']} ({run['core']})")
        cells.append(f"{run['hit_tokens'] / run['prompt_tokens']:.4f}")
        for times in run["microseconds"].values():
            some = f"{times['median']:.0f}, {times['p99']:.0f}"
            cells.append(some if times["count"] else "-")
        print("| " + " | ".join(cells) + " |")
    if args.out is not None:
        args.out.write_text(json.dumps(runs, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("trace", help="draw and plan the requests")
    make.add_argument("--requests", type=int, default=10_000)
    make.add_argument("--slots", type=int, required=True, help="of the KV cache, in tokens")
    make.add_argument("--recipe", default="trace1", help="as `simulate --workload` takes it")
    make.add_argument("--scale", type=float, default=8.0, help="all lengths are divided by this")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", type=Path, required=True)
    make.set_defaults(run=make_trace)
    one = commands.add_parser("play", help="drive one cache through a trace")
    one.add_argument("--trace", type=Path, required=True)
    one.add_argument("--cache", choices=CACHES, required=True)
    one.add_argument("--slots", type=int, help="of the KV cache (those the trace was made for)")
    one.add_argument("--batch", type=int, default=128, help="requests in flight at most")
    one.add_argument("--spare", type=float, default=1 / 16, help="time from this free share on")
    one.add_argument("--starts", type=int, help="stop after so many timed ones")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=play)
    show = commands.add_parser("table", help="print the runs as a table")
    show.add_argument("files", type=Path, nargs="+")
    show.add_argument("--out", type=Path)
    show.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
