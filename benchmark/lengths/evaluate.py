"""Evaluate output-length estimators over all traces: error of lengths and of compute density.

    python benchmark/lengths/evaluate.py [--seeds 5] [--workloads mmlu mix_chat] [-o results.json]

Each workload runs as an online process: a 1 % stratified wave first, then the paper's plan from
both sides, with a fixed number of requests at once. When the wave has ended, and when 25, 50 and
75 % have finished, every estimator predicts the requests that still wait, from what it can see.
Each seed leaves out a random tenth of the requests.

Errors, over the waiting requests:
  length     root mean square of estimate - true, over the mean true length
  bias       |sum estimate / sum true - 1|
  subtree    |log(predicted density / true density)| of subtrees, weighted by their work
  scan       the same over 20 parts of the scan order that the estimates give (by density)
Compute density is that of Llama-3.1-8B on one A100-80G, shared prefixes counted once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from baselines import global_mean, job_ewma, max_tokens, subtree_mean
from numpy.typing import NDArray
from process import Moment, OnlineRun, from_both_sides
from tqdm import tqdm
from workloads import WORKLOADS, Workload

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.lengths.estimator import LengthEstimator
from sglang.srt.blendserve.lengths.first_wave import sample_wave
from sglang.srt.blendserve.lengths.groups import subtree_of
from sglang.srt.blendserve.plan.annotations import request_costs
from sglang.srt.blendserve.plan.scan_order import plan_tree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SHARES = (0.25, 0.5, 0.75)
PARTS = 20
COST = CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))
METRICS = ("length", "bias", "subtree", "scan")


class Scene:
    """One sampled workload and its run."""

    def __init__(self, load: Workload) -> None:
        self.load = load
        self.tree = load.tree()
        known = np.zeros(load.size, dtype=np.bool_)
        self.wave = sample_wave(self.tree, known, 0.01)
        plan = plan_tree(self.tree, subtree_mean(load, self.tree, self.wave), COST)
        seats = int(np.clip(load.size // 16, 8, 256))
        order = from_both_sides(plan.order, self.wave)
        self.run = OnlineRun.of(order, load.output_tokens, seats)
        self.estimator = LengthEstimator(
            load.prompt_tokens, load.max_tokens, known, self.tree, load.job
        )
        self.observed = 0
        self.compute, self.memory = self._work(load.output_tokens.astype(np.float64))
        size = max(load.size // 64, 16)
        self.subtree = np.unique(subtree_of(self.tree, size), return_inverse=True)[1]

    def _work(self, lengths: Floats) -> tuple[Floats, Floats]:
        costs = request_costs(self.tree, lengths, COST)
        return costs.compute_seconds, costs.memory_seconds

    def times(self) -> dict[str, int]:
        """When to look: at the end of the wave and at shares of all requests finished."""
        times = {"wave": int(self.run.end[self.wave].max())}
        return times | {f"{share:.0%}": self.run.time_of(share) for share in SHARES}

    def estimates(self, moment: Moment) -> dict[str, tuple[Floats, Floats, Floats]]:
        """Lengths, compute and memory seconds that each estimator predicts, all (n,)."""
        load = self.load
        finished_wave = np.intersect1d(self.wave, moment.finished)
        lengths = {
            "max_tokens": max_tokens(load),
            "global mean": global_mean(load, moment),
            "subtree mean (paper)": subtree_mean(load, self.tree, finished_wave),
            "subtree mean (online)": subtree_mean(load, self.tree, moment.finished),
            "job EWMA": job_ewma(load, moment),
        }
        found = {name: (x, *self._work(x)) for name, x in lengths.items()}
        for request in moment.finished[self.observed :].tolist():
            self.estimator.observe(request, int(load.output_tokens[request]))
        self.observed = moment.finished.size
        mean = self.estimator.estimate(moment.running, moment.generated)
        compute, memory = self._work(mean)
        found["ours, E[d] only"] = (mean, compute, memory)
        reads = np.asarray(COST.kv_read_seconds(self.estimator.kv_reads(mean)))
        found["ours"] = (mean, compute, reads)
        return found

    def errors(self, estimate: tuple[Floats, Floats, Floats], waiting: Ints) -> dict[str, float]:
        """All METRICS of one estimate."""
        length, compute, memory = (x[waiting] for x in estimate)
        true = self.load.output_tokens[waiting]
        log_density = np.log(compute / memory)
        part = np.empty(waiting.size, dtype=np.int64)
        part[np.argsort(-log_density, kind="stable")] = (
            np.arange(waiting.size) * PARTS // waiting.size
        )
        return {
            "length": float(np.sqrt(np.mean((length - true) ** 2)) / true.mean()),
            "bias": float(abs(length.sum() / true.sum() - 1)),
            "subtree": self._density_error(self.subtree[waiting], compute, memory, waiting),
            "scan": self._density_error(part, compute, memory, waiting),
        }

    def _density_error(self, group: Ints, compute: Floats, memory: Floats, waiting: Ints) -> float:
        """Mean |log(predicted / true density)| of the groups, weighted by their work."""
        group = np.unique(group, return_inverse=True)[1]
        true = [np.bincount(group, x[waiting]) for x in (self.compute, self.memory)]
        predicted = np.bincount(group, compute) / np.bincount(group, memory)
        error = np.abs(np.log(predicted / (true[0] / true[1])))
        # A group weighs what it is of all compute and of all memory.
        weight = true[0] / true[0].sum() + true[1] / true[1].sum()
        return float((weight * error).sum() / weight.sum())


def evaluate(name: str, seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of one workload: moment -> estimator -> metric, means over the seeds."""
    whole = WORKLOADS[name]()
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for seed in range(seeds):
        scene = Scene(whole.sample(np.random.default_rng(seed), 0.9))
        times = scene.times()
        for when in sorted(times, key=lambda key: times[key]):
            moment = scene.run.moment(times[when])
            if moment.waiting.size < PARTS:
                continue
            for method, estimate in scene.estimates(moment).items():
                for metric, error in scene.errors(estimate, moment.waiting).items():
                    found[when, method, metric].append(error)
    table: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (when, method, metric), errors in found.items():
        table[when][method][metric] = round(float(np.mean(errors)), 4)
    return table


def main() -> int:
    """Run the evaluation; write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="samples of each workload (5)")
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=WORKLOADS,
        default=list(WORKLOADS),
        metavar="NAME",
        help=f"of {', '.join(WORKLOADS)} (all)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("results.json")
    )
    args = parser.parse_args()
    results = {}
    for name in tqdm(args.workloads, unit="workload"):
        results[name] = evaluate(name, args.seeds)
    args.output.write_text(
        json.dumps({"seeds": args.seeds, "metrics": METRICS, "workloads": results}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
