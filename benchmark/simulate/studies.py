"""Run a study of the simulator, or continue one.

    python benchmark/simulate/studies.py measured
    python benchmark/simulate/studies.py --only fcfs dfs -- grid
    python benchmark/simulate/studies.py --again blendserve -- all

All are at measured kernel times. Results go to ``benchmark/simulate/results/STUDY.jsonl``; cells
that are there are not run again. ``tables.py`` and ``figures.py`` make the tables and figures of
docs/ from them. ``matrix.py`` and ``tuning.py`` are studies, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cells import Cell, forget, run
from division import ONE_PLAN, ROUND_ROBIN, SUB_TREES, WINDOW

TRACES = ("trace1", "trace2", "trace3", "trace4")

MAIN = 400_000
"""Requests of the main study, as many as the paper's."""
SWEEP = 100_000
"""Of the sweeps, and of the grid, where the paper has 40,000."""

SEEDS = (1, 2)
"""Seeds beside 0."""

_ENGINE_CHUNK = 2048
"""Chunk size of the paper's engine, in whose multiples of 128 its batches lie."""
RELEASED = (8192, 1.0)
"""SGLang's default chunk on a large GPU and its default conservativeness: what people run."""
MEASURED_ENGINES = ("nanoflow", "lanes", "sequential")
"""Engines that there are published costs of overlap for, and the one without overlap."""
_LOW = 0.1
"""Conservativeness of the peers in the sweeps, under which SGLang reserves little."""


def beside(workload: str, requests: int, **more: Any) -> list[Cell]:
    """What the sweeps compare."""
    peers = [("dfs", 512, _LOW), ("dfs", _ENGINE_CHUNK, _LOW), ("fcfs", 512, _LOW)]
    return [
        Cell("blendserve", workload, requests, **more),
        *(
            Cell(peer, workload, requests, chunk=chunk, conservativeness=share, **more)
            for peer, chunk, share in (*peers, ("fcfs", *RELEASED))
        ),
    ]


def measured() -> list[Cell]:
    """The four traces on the paper's GPU, three seeds where the engine overlaps; peers at the chunk
    size that is best for them and at SGLang's default flags."""
    flags = [
        ("dfs", _ENGINE_CHUNK, _LOW),
        ("fcfs", 512, _LOW),
        ("random", 512, _LOW),
        *((policy, *RELEASED) for policy in ("dfs", "fcfs")),
        ("blendserve", 0, 1.0),
    ]
    return [
        Cell(policy, workload, MAIN, seed, chunk, share, engine=engine)
        for seed in (0, *SEEDS)
        for workload in TRACES
        for engine in MEASURED_ENGINES
        if engine != "sequential" or seed == 0
        for policy, chunk, share in flags
    ]


OTHERS = ("lof", "dfs-weight", "lpt-ewma", "batchllm")
"""Peers that no other study has: SGLang's own, and published ones."""


def others() -> list[Cell]:
    """The four traces under more peers, each at two chunk sizes, and under the paper's scanner."""
    flags = [
        ("blendserve", 0, 1.0),
        ("paper", 0, 1.0),
        *((policy, chunk, _LOW) for policy in OTHERS for chunk in (512, _ENGINE_CHUNK)),
    ]
    return [
        Cell(policy, workload, SWEEP, 0, chunk, share)
        for workload in TRACES
        for policy, chunk, share in flags
    ]


USERS, USERS_REQUESTS = (
    (
        ("documents", "interleaved"),
        ("documents", "shuffled"),
        ("documents", "sorted"),
        ("prefixes", "shuffled"),
        ("prefixes", "sorted"),
        ("agents", "interleaved"),
        ("agents", "shuffled"),
        ("agents", "sorted"),
        ("reasoning", "shuffled"),
        ("trace1", "sorted"),
        ("trace4", "sorted"),
    ),
    50_000,
)
"""Workloads and orders of a file that users have, and their requests; the traces have more."""
USER_FLAGS = ((512, _LOW), (2048, _LOW), RELEASED)
"""Chunk and conservativeness of the peers there."""


def users() -> list[Cell]:
    """Workloads that users have, in the orders of a file."""
    return [
        Cell(
            policy,
            workload,
            MAIN if workload.startswith("trace") else USERS_REQUESTS,
            chunk=chunk,
            conservativeness=share,
            engine=engine,
            order=order,
        )
        for workload, order in USERS
        for engine in ("lanes", "sequential")
        for policy, chunk, share in (
            *(("fcfs", *flags) for flags in USER_FLAGS),
            *(("dfs", *flags) for flags in USER_FLAGS),
            ("blendserve", 0, 1.0),
        )
    ]


WINDOWS = (0, 2048, 8192)
"""Requests of the engine's window; 0: all are in the engine."""

KNOWN_AHEAD = 0.1
"""Part of the requests that are there from the start, where jobs arrive over time."""


def windows() -> list[Cell]:
    """A plan over everything before engines that hold a window, and windows in the file's order."""
    ahead: list[dict[str, Any]] = [{"window": window} for window in WINDOWS]
    in_order = {"window": WINDOWS[-1], "plan_ahead": False}
    everywhere = ("trace1", "trace4")

    def cells(
        workload: str,
        order: str,
        options: Sequence[dict[str, Any]],
        engine: str = "lanes",
        requests: int = SWEEP,
    ) -> list[Cell]:
        where: dict[str, Any] = {"engine": engine, "order": order}
        return [
            Cell("blendserve", workload, requests, seed, options=dict(one), **where)
            for seed in (0, *SEEDS)
            for one in options
        ]

    over_time = [{**one, "known_ahead": KNOWN_AHEAD} for one in ahead]
    with_order = (*ahead, in_order)
    full = [cell for w in everywhere for cell in cells(w, "sorted", ahead) if cell.seed == 0]
    found = [
        *(c for w in everywhere for e in ("lanes", "sequential")
          for c in cells(w, "sorted", with_order, e)),
        *(c for w in everywhere for o in ("jobs", "shuffled") for c in cells(w, o, with_order)),
        *(c for w in everywhere for c in cells(w, "jobs", over_time)),
        *(c for w in TRACES for c in cells(w, "sorted", ahead, requests=MAIN)),
        *(replace(cell, simulation="full") for cell in full),
    ]  # fmt: skip
    return sorted(found, key=lambda cell: (cell.simulation == "full", cell.seed))


def hopper() -> list[Cell]:
    """The four traces on newer GPUs, two lanes and none."""
    flags = [("dfs", 2048, _LOW), ("fcfs", 512, _LOW), ("fcfs", *RELEASED), ("blendserve", 0, 1.0)]
    return [
        Cell(
            policy,
            workload,
            MAIN,
            chunk=chunk,
            conservativeness=share,
            engine=engine,
            device=device,
        )
        for workload in TRACES
        for device, engine in (("H100", "lanes"), ("H200", "lanes"), ("H200", "sequential"))
        for policy, chunk, share in flags
    ]


ABLATIONS: dict[str, dict[str, object]] = {
    "order: as they arrived": {"arrival_order": True},
    "pace: chunks of 2048": {"pace": "fixed", "chunk": 2048},
    "pace: chunks of 512": {"pace": "fixed", "chunk": 512},
    "admission: reserve all": {"reserve_all": True},
    "admission: fits to its end": {"earned": 1e9},
    "eviction: least recently used": {"lru_eviction": True},
    "memory: nothing kept apart": {"most_share": 0.0},
    "estimator: mean of all": {"told": "mean"},
    "the paper's scanner": {"pace": "paper"},
}
"""Each part of the policy switched off alone."""

ABLATED: dict[str, dict[str, Any]] = {
    "trace1": {"workload": "trace1", "requests": SWEEP},
    "trace4": {"workload": "trace4", "requests": SWEEP},
    "trace1, cache of a quarter": {
        "workload": "trace1",
        "requests": SWEEP // 4,
        "kv_slots": 106_000,
    },
    "documents": {"workload": "documents", "requests": 20_000, "order": "interleaved"},
    "prefixes": {"workload": "prefixes", "requests": 20_000},
    "agents": {"workload": "agents", "requests": 20_000},
}
"""Where parts should matter: the traces, a cache that holds little, prefixes that do not fit."""


def ablations() -> list[Cell]:
    """The policy as it is and with each part of it switched off alone, three seeds."""
    return [
        Cell("blendserve", seed=seed, options=dict(o), **where)
        for seed in (0, *SEEDS)
        for where in ABLATED.values()
        for o in ({}, *ABLATIONS.values())
    ]


CANDIDATES: dict[str, dict[str, object]] = {
    "as they arrived": {"arrival_order": True},
    "chunks of 2048": {"pace": "fixed", "chunk": 2048},
    "chunks of 512": {"pace": "fixed", "chunk": 512},
    "fits to its end": {"earned": 1e9},
    "nothing kept apart": {"most_share": 0.0},
}
"""Policies that one which looks ahead could choose in place of ours."""

CHOOSING: dict[str, int] = {
    "trace2": SWEEP,
    "azure_code": SWEEP,
    "azure_conv": SWEEP,
    "burstgpt": SWEEP,
    "sharegpt": SWEEP,
    "sharegpt+azure_code+mmlu": SWEEP,
    "reasoning": 10_000,
    "burstgpt+reasoning": 20_000,
}
"""Workloads of the matrix on which the ablations do not say it, and their requests there."""
CHOOSING_ON = (("A100-80G", "lanes"), ("H100", "sequential"))


def candidates() -> list[Cell]:
    """What choosing among candidates by simulating what is left could gain at most."""
    return [
        Cell("blendserve", w, n, 1, device=device, engine=engine, options=dict(options))
        for w, n in CHOOSING.items()
        for device, engine in CHOOSING_ON
        for options in ({}, *CANDIDATES.values())
    ]


LENGTHS: dict[str, dict[str, object]] = {
    "sampled, 1 %": {},
    "sampled, 10 %": {"sample": 0.1},
    "known": {"told": "true"},
    "told, half or double at random": {"told": "wrong"},
}


def lengths() -> list[Cell]:
    """What knowing output lengths is worth, and what wrong ones cost."""
    return [
        Cell("blendserve", w, SWEEP, seed, options=dict(options))
        for seed in (0, *SEEDS)
        for w in TRACES
        for options in LENGTHS.values()
    ]


VARIED = {
    "ShareGPT chats with videos": "density=0.9,sharing=0.05,compute=sharegpt,memory=video",
    "BurstGPT with reasoning": "density=1.0,sharing=0.05,compute=burstgpt,memory=reasoning",
    "ShareGPT with reasoning": "density=1.2,sharing=0.2,compute=sharegpt,memory=reasoning",
}


def variance() -> list[Cell]:
    """Workloads whose output lengths vary much."""
    return [cell for workload in VARIED.values() for cell in beside(workload, SWEEP)]


SLOTS = (100_000, 200_000, None)
"""Sizes of the KV cache, tokens; None: what fits."""


def pool() -> list[Cell]:
    """Tight and ample KV caches."""
    return [cell for slots in SLOTS for cell in beside("trace2", SWEEP, kv_slots=slots)]


MODELS = (
    ("Llama-3.1-8B", "A100-80G", 1),
    ("Llama-3.1-70B", "A100-80G", 8),
    ("Qwen2.5-7B", "H100", 1),
    ("Qwen2.5-72B", "H200", 4),
    ("Llama-2-7B", "A100-80G", 1),
    ("DeepSeek-67B", "A100-80G", 8),
)
"""Model, device, tensor parallel ranks. Of experts and latent attention there are no measured
kernels."""


def models() -> list[Cell]:
    """Other models and devices, on the same requests."""
    return [
        cell
        for model, device, tp in MODELS
        for cell in beside("trace1", SWEEP, model=model, device=device, tp=tp)
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
        cell
        for density in coarse_first
        for sharing in SHARINGS
        for cell in beside(mix(density, sharing), SWEEP)
    ]


FLEETS = (2, 4, 8, 64)


def engines() -> list[Cell]:
    """One pool of the trace with few long outputs on several engines: fed from one plan, and
    divided beforehand, in turn or by sub-trees; engines of different speed, and one that dies."""
    whole = Cell("blendserve", "trace4", MAIN)
    one = replace(whole, options={"window": WINDOW})
    return [
        one,
        *(replace(whole, replicas=count, division=ONE_PLAN) for count in FLEETS),
        replace(whole, replicas=4, division=ONE_PLAN, fleet={"speeds": [1, 1, 0.5, 0.5]}),
        replace(whole, replicas=4, division=ONE_PLAN, fleet={"dies_after": 0.5}),
        *(replace(whole, replicas=count, division=ROUND_ROBIN) for count in FLEETS[:-1]),
        replace(whole, replicas=4, division=SUB_TREES),
        *(
            replace(cell, seed=1)
            for cell in (
                one,
                *(replace(whole, replicas=8, division=d) for d in (ONE_PLAN, ROUND_ROBIN)),
            )
        ),
    ]


COUNTS = (50_000, 100_000, 200_000, 400_000, 800_000)


def convergence() -> list[Cell]:
    """How many requests it takes until the result stops moving."""
    return [cell for requests in COUNTS for cell in beside("trace1", requests)]


def scale() -> list[Cell]:
    """That a replica stands for the whole."""
    return [cell for scale in (4, 8, 16) for cell in beside("trace1", MAIN, scale=scale)]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "measured": measured,
    "users": users,
    "others": others,
    "ablations": ablations,
    "candidates": candidates,
    "lengths": lengths,
    "grid": grid,
    "variance": variance,
    "models": models,
    "pool": pool,
    "convergence": convergence,
    "scale": scale,
    "engines": engines,
    "windows": windows,
    "hopper": hopper,
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
