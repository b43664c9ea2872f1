"""Run a study of the simulator, or continue one.

    python benchmark/simulate/studies.py traces
    python benchmark/simulate/studies.py --only fcfs dfs -- grid
    python benchmark/simulate/studies.py --again blendserve -- all

Results go to ``benchmark/simulate/results/STUDY.jsonl``; cells that are there are not run again.
``tables.py`` and ``figures.py`` make the tables and figures of docs/ from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cells import Cell, forget, load, run
from division import DIVISIONS

TRACES = ("trace1", "trace2", "trace3", "trace4")
ENGINES = ("overlap", "sequential")

MAIN = 400_000
"""Requests of the main study, as many as the paper's."""
SWEEP = 100_000
"""Of the sweeps, and of the grid, where the paper has 40,000."""
FULL, LARGE = 100_000, 200_000
"""Of the runs through SGLang's scheduler, which takes some minutes for each; of some of them."""

TIGHT, TIGHT_SLOTS = 25_000, 100_000
"""Of such runs with a quarter of the KV slots that fit, to put the memory under pressure."""

SEEDS, SEEDED = (1, 2), 200_000
"""Other seeds of the main study, and their requests."""

PEER_CHUNKS = {
    "dfs": (256, 512, 1024, 2048, 8192),
    "fcfs": (256, 512, 1024, 2048, 8192),
    "random": (512, 2048),
    "lof": (512, 2048),
    "dfs-weight": (512, 2048),
    "lpt-ewma": (512, 2048),
    "batchllm": (512, 2048),
}
"""Chunk sizes tried for each peer."""

_ENGINE_CHUNK = 2048
"""Chunk size of the paper's engine, in whose multiples of 128 its batches lie."""
_BESIDE = (("blendserve", 0), ("dfs", 512), ("dfs", _ENGINE_CHUNK), ("fcfs", 512))
"""What the sweeps compare: policies, and chunks of peers."""


def traces() -> list[Cell]:
    """The four traces under every policy, both engines; peers at several chunk sizes."""
    peers = [(policy, chunk) for policy, chunks in PEER_CHUNKS.items() for chunk in chunks]
    return [
        Cell(policy, workload, MAIN, engine=engine, chunk=chunk)
        for engine in ENGINES
        for policy, chunk in (("blendserve", 0), ("paper", 0), *peers)
        for workload in TRACES
    ]


def full() -> list[Cell]:
    """The four traces through SGLang's scheduler, and the step model beside it.

    Peers take the chunk that is best in the step model, whose cells must be there for that.
    """
    found = load("full").values()
    cells = []
    for workload in TRACES:
        for policy in ("dfs", "fcfs", "blendserve"):
            chunks = PEER_CHUNKS.get(policy, (0,))
            fast = [Cell(policy, workload, FULL, chunk=chunk) for chunk in chunks]
            rates = {
                row["cell"]["chunk"]: row["result"]["tokens_per_second"]
                for row in found
                if Cell(**row["cell"]) in fast
            }
            cells += fast
            if len(rates) == len(fast):
                best = max(rates, key=lambda chunk: rates[chunk])
                cells.append(Cell(policy, workload, FULL, chunk=best, simulation="full"))
    return [*cells, *large(), *tight()]


def large() -> list[Cell]:
    """Twice as many requests, on a compute- and a memory-bound trace."""
    return [
        Cell(policy, workload, LARGE, chunk=chunk, simulation=simulation)
        for workload in ("trace1", "trace4")
        for policy, chunk in (("blendserve", 0), ("dfs", 512))
        for simulation in ("fast", "full")
    ]


def tight() -> list[Cell]:
    """The same with a KV cache that is filled many times over, as by many more requests."""
    return [
        Cell(policy, workload, TIGHT, seed, chunk, kv_slots=TIGHT_SLOTS, simulation=simulation)
        for workload in ("trace4", "trace1")
        for seed in (0, *SEEDS)
        for policy, chunk in (("blendserve", 0), ("dfs", 512))
        for simulation in ("fast", "full")
    ]


def convergence() -> list[Cell]:
    """How many requests it takes until the result stops moving."""
    return [
        Cell(policy, "trace1", requests, chunk=chunk)
        for requests in (50_000, 100_000, 200_000, 400_000, 800_000)
        for policy, chunk in _BESIDE
    ]


def scale() -> list[Cell]:
    """That a replica stands for the whole."""
    return [
        Cell(policy, "trace1", SWEEP, chunk=chunk, scale=scale)
        for scale in (4, 8, 16)
        for policy, chunk in _BESIDE
    ]


ABLATIONS: dict[str, dict[str, object]] = {
    "all on": {},
    "order: as they arrived": {"arrival_order": True},
    "split: none": {"keep_sharing": 1.0},
    "pace: chunks of 2048": {"pace": "fixed", "chunk": 2048},
    "pace: chunks of 512": {"pace": "fixed", "chunk": 512},
    "pace: ratio of the rest": {"pace": "ratio"},
    "admission: reserve all": {"reserve_all": True},
    "eviction: least recently used": {"lru_eviction": True},
    "estimator: mean of all": {"told": "mean"},
    "the paper's scanner: partition, fixed budgets": {"pace": "paper"},
}
"""Each part of the policy switched off alone."""


def ablations() -> list[Cell]:
    """Each part of the policy switched off alone, on a compute- and a memory-bound trace."""
    return [
        Cell("blendserve", workload, SWEEP, options=dict(options))
        for workload in ("trace1", "trace4")
        for options in ABLATIONS.values()
    ]


LENGTHS: dict[str, dict[str, object]] = {
    "known": {"told": "true"},
    "sampled, 1 %": {},
    "sampled, 10 %": {"sample": 0.1},
    "told, half or double at random": {"told": "wrong"},
}


def lengths() -> list[Cell]:
    """What knowing output lengths is worth, and what wrong ones cost."""
    return [
        Cell("blendserve", workload, SWEEP, options=dict(options))
        for workload in ("trace1", "trace4")
        for options in LENGTHS.values()
    ]


VARIED = {
    "ShareGPT chats with videos": "density=0.9,sharing=0.05,compute=sharegpt,memory=video",
    "BurstGPT with reasoning": "density=1.0,sharing=0.05,compute=burstgpt,memory=reasoning",
    "ShareGPT with reasoning": "density=1.2,sharing=0.2,compute=sharegpt,memory=reasoning",
}


def variance() -> list[Cell]:
    """Workloads whose output lengths vary much."""
    return [
        Cell(policy, workload, SWEEP, chunk=chunk)
        for workload in VARIED.values()
        for policy, chunk in _BESIDE
    ]


def pool() -> list[Cell]:
    """Tight and ample KV caches."""
    return [
        Cell(policy, "trace2", SWEEP, chunk=chunk, kv_slots=slots)
        for slots in (200_000, None, 800_000)
        for policy, chunk in _BESIDE
    ]


MODELS = (
    ("Llama-3.1-8B", "A100-80G", 1),
    ("Llama-3.1-70B", "A100-80G", 8),
    ("Qwen2.5-7B", "H100", 1),
    ("Qwen2.5-72B", "H200", 4),
    ("Llama-2-7B", "A100-80G", 1),
    ("DeepSeek-67B", "A100-80G", 8),
    ("Qwen3-30B-A3B", "H100", 2),
    ("DeepSeek-V2-Lite", "H100", 1),
)
"""Model, device, tensor parallel ranks."""


def models() -> list[Cell]:
    """Other models and devices, on the same requests."""
    return [
        Cell(policy, "trace1", SWEEP, chunk=chunk, model=model, device=device, tp=tp)
        for model, device, tp in MODELS
        for policy, chunk in _BESIDE
    ]


SHARINGS = tuple(range(5, 46, 10))
DENSITIES = tuple(range(80, 141, 5))


def mix(density: int, sharing: int) -> str:
    """A point of the grid, in hundredths."""
    return f"density={density / 100:g},sharing={sharing / 100:g}"


def grid() -> list[Cell]:
    """The paper's 65 mixes of density and sharing, a coarse grid first."""
    coarse_first = [*DENSITIES[::4], *DENSITIES[2::4], *DENSITIES[1::2]]
    return [
        Cell(policy, mix(density, sharing), SWEEP, chunk=chunk)
        for density in coarse_first
        for sharing in SHARINGS
        for policy, chunk in _BESIDE
    ]


REPLICAS = (1, 2, 4, 8)


def ranks() -> list[Cell]:
    """Data parallel replicas: the pool divided as SGLang does, and as the paper does."""
    return [
        Cell("blendserve", "trace4", MAIN, replicas=count, division=division if count > 1 else "")
        for count in REPLICAS
        for division in (DIVISIONS if count > 1 else DIVISIONS[:1])
    ]


def seeds() -> list[Cell]:
    """The main study's traces with other requests of the same kinds."""
    return [
        Cell(policy, workload, SEEDED, seed, chunk)
        for seed in (0, *SEEDS)
        for workload in TRACES
        for policy, chunk in _BESIDE
    ]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "traces": traces,
    "full": full,
    "grid": grid,
    "variance": variance,
    "ablations": ablations,
    "lengths": lengths,
    "models": models,
    "pool": pool,
    "ranks": ranks,
    "convergence": convergence,
    "scale": scale,
    "seeds": seeds,
}


def main() -> None:
    """Run the studies that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="+", choices=[*STUDIES, "all"])
    parser.add_argument("--only", nargs="+", metavar="POLICY", help="cells of these policies")
    parser.add_argument("--workload", help="cells of this workload")
    parser.add_argument("--again", metavar="POLICY", help="forget all results of it first")
    parser.add_argument("--minutes", type=float, help="begin no cell after so long")
    args = parser.parse_args()
    if args.again:
        forget(args.again)
    for name in STUDIES if "all" in args.study else args.study:
        cells = [
            cell
            for cell in STUDIES[name]()
            if (not args.only or cell.policy in args.only)
            and (not args.workload or cell.workload == args.workload)
        ]
        run(name, cells, args.minutes)


if __name__ == "__main__":
    main()
