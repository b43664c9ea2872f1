"""How long planning takes, stage by stage: python benchmark/plan_time.py 100000 400000

The pool is made up in the mix of the paper's Trace#1: a third few-shot prompts (57 prefixes of
500 tokens), a third chats behind one system prompt, a third short prompts with long outputs; 400
tokens a prompt on average, and output lengths spread.

A second thread asks for the interpreter lock every millisecond meanwhile. Its longest wait is what
a scheduler in the same process would feel of a plan made in the background. On a machine that does
other work only the CPU seconds mean something.

With --stall: how long scheduling passes take while the pool is planned, at once and in the
background. A pass here is 150 small torch operations, about what SGLang's scheduler does in one.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.plan.layer_sort import sort_tree
from sglang.srt.blendserve.plan.merge import merge_units
from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.plan.scan_order import build_plan, plan_tree
from sglang.srt.blendserve.pool.background import Background
from sglang.srt.blendserve.pool.pool_request import PoolRequest
from sglang.srt.blendserve.pool.request_pool import RequestPool
from simulate.partition import partition

Result = TypeVar("Result")


def make_pool(count: int) -> tuple[list[NDArray[np.int32]], NDArray[np.float64]]:
    """``count`` prompts and output lengths; the same for the same ``count``."""
    rng = np.random.default_rng(0)
    few_shot = [rng.integers(0, 32_000, 500, dtype=np.int32) for _ in range(57)]
    system = rng.integers(0, 32_000, 200, dtype=np.int32)
    nothing = np.zeros(0, dtype=np.int32)
    prompts, lengths = [], np.empty(count)
    for index in range(count):
        kind = index % 3
        head = (few_shot[rng.integers(57)], system, nothing)[kind]
        tail = rng.integers(0, 32_000, int(rng.integers(20, (160, 360, 500)[kind])), dtype=np.int32)
        prompts.append(np.concatenate([head, tail]))
        lengths[index] = (2 if rng.random() > 0.02 else 800, rng.lognormal(5, 1), 4000)[kind]
    return prompts, lengths


class Watch:
    """Times stages and the longest wait of a second thread for the interpreter lock."""

    def __init__(self) -> None:
        self._longest_wait = 0.0
        self._stop = threading.Event()
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._stop.is_set():
            start = time.perf_counter()
            time.sleep(0.001)
            self._longest_wait = max(self._longest_wait, time.perf_counter() - start - 0.001)

    def time(self, stage: str, work: Callable[[], Result]) -> Result:
        """Run ``work`` and print how long it took."""
        self._longest_wait = 0.0
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        waited = 1000 * self._longest_wait
        print(f"  {stage:<22} {seconds:7.2f} s {cpu:7.2f} CPU s   longest wait {waited:5.0f} ms")
        return result

    def stop(self) -> None:
        self._stop.set()


def measure(count: int) -> None:
    """Print the times of each stage for a pool of ``count`` requests."""
    cost = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
    prompts, lengths = make_pool(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count:,} requests, {sum(p.size for p in prompts):,} prompt tokens")
    watch = Watch()
    tree = watch.time("prefix tree", lambda: PrefixTree.build(prompts))
    done = watch.time("annotate, layer sort", lambda: sort_tree(tree, lengths, cost))
    order = done.tree.leaf_requests
    compute, memory = done.costs.compute_seconds[order], done.costs.memory_seconds[order]
    watch.time("merge", lambda: merge_units(compute, memory))
    plan = watch.time("all of it: build_plan", lambda: build_plan(prompts, lengths, cost))
    remaining = np.random.default_rng(1).random(count) < 0.5
    watch.time("half of it again", lambda: plan_tree(tree.restricted(remaining), lengths, cost))
    watch.time("partition for 8 ranks", lambda: partition(plan, 8))
    watch.stop()
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"  {plan.tree.nodes:,} nodes; sharing {plan.sharing:.4f}; "
          f"memory beyond the prompts at most {extra / 1024:,.0f} MiB")  # fmt: skip


def one_pass() -> float:
    """Milliseconds of something like a scheduling pass."""
    began = time.perf_counter()
    slots = torch.zeros(256, dtype=torch.int64)
    for _ in range(150):
        slots = torch.cat((slots[128:], slots[:128]))
    return 1000 * (time.perf_counter() - began)


def stall(count: int) -> None:
    """Print how long passes take while a pool of ``count`` requests is planned."""
    torch.set_num_threads(1)
    cost = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
    prompts, _ = make_pool(count)
    alone = [one_pass() for _ in range(1000)]
    show("without planning", alone)
    for name, background in (("planned at once", None), ("in the background", Background())):
        pool = RequestPool(cost, 500_000, background=background)
        for index, prompt in enumerate(prompts):
            pool.add(PoolRequest(str(index), prompt, 8000))
        passes, planned = [], False
        while not planned:
            began = time.perf_counter()
            planned = pool.plan_if_due(quiet=True)
            passes.append(1000 * (time.perf_counter() - began) + one_pass())
        show(name, passes)


def show(name: str, passes: list[float]) -> None:
    times = np.array(passes)
    late = np.quantile(times, 0.99)
    print(
        f"  {name:<18} {times.size:5} passes in {times.sum() / 1000:.2f} s, milliseconds: "
        f"mean {times.mean():.2f}, P99 {late:.2f}, longest {times.max():.2f}"
    )


def main() -> None:
    """Measure each of the given pool sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requests", type=int, nargs="*", default=[100_000], help="pool sizes")
    parser.add_argument("--stall", action="store_true", help="measure passes, not stages")
    args = parser.parse_args()
    for count in args.requests:
        if args.stall:
            stall(count)
        else:
            measure(count)


if __name__ == "__main__":
    main()
