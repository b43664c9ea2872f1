"""Run a study of the simulator, or continue one.

    python benchmark/simulate/studies.py traces
    python benchmark/simulate/studies.py --only fcfs dfs -- grid
    python benchmark/simulate/studies.py --again blendserve -- all

Results go to ``benchmark/simulate/results/STUDY.jsonl``; cells that are there are not run again.
``tables.py`` and ``figures.py`` make the tables and figures of docs/ from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cells import Cell, forget, load, run
from division import DIVISIONS, ONE_PLAN, ROUND_ROBIN, WINDOW

from sglang.srt.blendserve.policy.pace import PACES
from sglang.srt.blendserve.simulator.peers import CONSERVATIVENESS

TRACES = ("trace1", "trace2", "trace3", "trace4")
ENGINES = ("overlap", "sequential")

MAIN = 400_000
"""Requests of the main study, as many as the paper's."""
SWEEP = 100_000
"""Of the sweeps, and of the grid, where the paper has 40,000."""
FULL, LARGE = 100_000, 200_000
"""Of the runs through SGLang's scheduler, which takes some minutes for each; of those that show how
far it matters that they are few."""

TIGHT, TIGHT_SLOTS = 25_000, 100_000
"""Of such runs with a quarter of the KV slots that fit, to put the memory under pressure."""

SEEDS, SEEDED = (1, 2), 200_000
"""Other seeds of the main study, and their requests."""

PEER_CHUNKS = {
    "dfs": (192, 256, 512, 1024, 2048, 8192),
    "fcfs": (192, 256, 512, 1024, 2048, 8192),
    "random": (512, 2048),
    "lof": (512, 2048),
    "dfs-weight": (512, 2048),
    "lpt-ewma": (512, 2048),
    "batchllm": (512, 2048),
}
"""Chunk sizes tried for each peer."""

_ENGINE_CHUNK = 2048
"""Chunk size of the paper's engine, in whose multiples of 128 its batches lie."""
RELEASED = (8192, 1.0)
"""SGLang's default chunk on a large GPU and its default conservativeness: what people run."""
MEASURED_ENGINES = ("nanoflow", "lanes", "sequential")
"""Engines that there are published costs of overlap for, and the one without overlap."""
_LOW = 0.1
"""Conservativeness of the peers in the sweeps; the main study tries it beside SGLang's default of 1
and finds it the better one for fcfs, and no worse for DFS."""


def beside(workload: str, requests: int, **more: Any) -> list[Cell]:
    """What the sweeps compare."""
    peers = [("dfs", 512), ("dfs", _ENGINE_CHUNK), ("fcfs", 512)]
    return [
        Cell("blendserve", workload, requests, **more),
        *(Cell(p, workload, requests, chunk=c, conservativeness=_LOW, **more) for p, c in peers),
    ]


def traces() -> list[Cell]:
    """The four traces under every policy, both engines; peers at several chunk sizes."""
    peers = [
        (policy, chunk, share)
        for policy, chunks in PEER_CHUNKS.items()
        for chunk in chunks
        for share in CONSERVATIVENESS
    ]
    return [
        Cell(policy, workload, MAIN, engine=engine, chunk=chunk, conservativeness=share)
        for engine in ENGINES
        for workload in TRACES
        for policy, chunk, share in (("blendserve", 0, 1.0), *peers)
    ]


def measured() -> list[Cell]:
    """The four traces at measured kernel times on the paper's GPU, three seeds where the engine
    overlaps; peers at the chunk size that is best for them and at SGLang's default flags."""
    flags = [
        ("dfs", _ENGINE_CHUNK, _LOW),
        ("fcfs", 512, _LOW),
        ("random", 512, _LOW),
        *((policy, *RELEASED) for policy in ("dfs", "fcfs")),
        ("blendserve", 0, 1.0),
    ]
    return [
        Cell(policy, workload, MAIN, seed, chunk, share, engine=engine, rates="tables")
        for seed in (0, *SEEDS)
        for workload in TRACES
        for engine in MEASURED_ENGINES
        if engine != "sequential" or seed == 0
        for policy, chunk, share in flags
    ]


def again() -> list[Cell]:
    """The runs of `measured` of one seed under the pace that came after it."""
    return [
        replace(cell, options={"pace": "marginal"})
        for cell in measured()
        if cell.policy == "blendserve" and cell.seed == 0
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
    """Workloads that users have, in the orders of a file, at measured rates."""
    return [
        Cell(
            policy,
            workload,
            MAIN if workload.startswith("trace") else USERS_REQUESTS,
            chunk=chunk,
            conservativeness=share,
            engine=engine,
            order=order,
            rates="tables",
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

    def cells(workload: str, engine: str, order: str, seeds: Sequence[int]) -> list[Cell]:
        return [
            Cell(
                "blendserve",
                workload,
                SWEEP,
                seed,
                engine=engine,
                order=order,
                rates="tables",
                options=options,
            )
            for seed in seeds
            for options in (*ahead, in_order)
        ]

    large = [
        Cell(
            "blendserve",
            workload,
            MAIN,
            seed,
            engine="lanes",
            order="sorted",
            rates="tables",
            options={"window": window},
        )
        for workload in ("trace1", "trace4", "trace2", "trace3")
        for seed in (0, *SEEDS)
        for window in WINDOWS
    ]
    return [
        *(
            cell
            for workload in ("trace1", "trace4")
            for engine in ("lanes", "sequential")
            for cell in cells(workload, engine, "sorted", (0, *SEEDS))
        ),
        *(
            cell
            for workload in ("trace1", "trace4")
            for order in ("jobs", "shuffled")
            for cell in cells(workload, "lanes", order, (0, *SEEDS))
        ),
        *large,
        *(
            Cell(
                "blendserve",
                workload,
                SWEEP,
                seed,
                engine="lanes",
                order="jobs",
                rates="tables",
                options={"window": window, "known_ahead": KNOWN_AHEAD},
            )
            for workload in ("trace1", "trace4")
            for seed in (0, *SEEDS)
            for window in WINDOWS
        ),
        *(
            Cell(
                "blendserve",
                workload,
                FULL,
                engine="lanes",
                order="sorted",
                rates="tables",
                options={"window": window},
                simulation="full",
            )
            for workload in ("trace1", "trace4")
            for window in WINDOWS
        ),
    ]


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
            rates="tables",
        )
        for workload in TRACES
        for device, engine in (("H100", "lanes"), ("H200", "lanes"), ("H200", "sequential"))
        for policy, chunk, share in flags
    ]


PACED = (
    *((trace, SWEEP) for trace in TRACES),
    ("azure_code", 20_000),
    ("azure_conv", 20_000),
    ("burstgpt", 20_000),
    ("sharegpt", 20_000),
    ("sharegpt+azure_code+mmlu", 20_000),
    ("documents", 20_000),
    ("reasoning", 2_500),
)
"""Workloads, and requests, on which the paces are compared: the four that constants were once set
on, and others."""
PACED_ON = (
    ("A100-80G", "sequential"),
    ("A100-80G", "lanes"),
    ("A100-80G", "nanoflow"),
    ("H100", "sequential"),
    ("H100", "lanes"),
)
BEFORE = {"sequential": "spread", "lanes": "balance", "nanoflow": "balance"}
"""Paces that `marginal` took the place of, for one seed; they are no more."""
PACED_PEERS = (("fcfs", 512, _LOW), ("fcfs", 2048, _LOW), ("fcfs", *RELEASED), ("dfs", 2048, _LOW))


def paces() -> list[Cell]:
    """The pace by marginal step time on measured devices, beside peers and earlier paces."""
    return [
        Cell(
            policy,
            workload,
            requests,
            seed,
            chunk,
            share,
            device=device,
            engine=engine,
            rates="tables",
            options=options,
        )
        for seed in (0, *SEEDS)
        for workload, requests in PACED
        for device, engine in PACED_ON
        for policy, chunk, share, options in (
            ("blendserve", 0, 1.0, {"pace": "marginal"}),
            ("blendserve", 0, 1.0, {"pace": BEFORE[engine]}),
            *((*peer, {}) for peer in PACED_PEERS),
        )
    ]


def alike() -> list[Cell]:
    """Requests that are all alike, with no memory kept for one side of the scan, and with it."""
    return [
        Cell(
            "blendserve",
            "reasoning",
            2_500,
            seed,
            engine=engine,
            rates="tables",
            options={"pace": "marginal", **more},
        )
        for engine in ("lanes", "sequential")
        for seed in (0, 1)
        for more in ({}, {"apart": 1.0})
    ]


def shortfalls() -> list[Cell]:
    """Where the matrix has losses: requests by arrival, and such as fit to their end."""
    ordered = (("azure_conv", 20_000), ("trace1", 60_000), ("trace2", 60_000), ("trace4", 60_000))
    long_answers = (
        ("reasoning", 10_000, "H100", "sequential"),
        ("burstgpt+reasoning", 20_000, "A100-80G", "lanes"),
    )
    to_the_end = {"earned": 1e9}
    return [
        *(
            Cell(
                "blendserve", workload, requests, 1, engine=engine, rates="tables", options=options
            )
            for workload, requests in ordered
            for engine in ("sequential", "lanes")
            for options in ({}, {"arrival_order": True})
        ),
        *(
            Cell(
                *("blendserve", workload, requests, 1),
                device=device,
                engine=engine,
                rates="tables",
                options=options,
            )
            for workload, requests, device, engine in long_answers
            for options in ({}, to_the_end)
        ),
    ]


def paper() -> list[Cell]:
    """The paper's own scanner, which takes far longer than all others, on fewer requests."""
    return [Cell("paper", workload, SWEEP) for workload in TRACES]


def full() -> list[Cell]:
    """The four traces through SGLang's scheduler, and the step model beside it.

    Peers have chunks of 512, DFS at SGLang's default conservativeness and fcfs at the low one.
    """
    flags = [("blendserve", 0, 1.0), ("dfs", 512, 1.0), ("fcfs", 512, _LOW)]
    cells = [
        Cell(policy, workload, FULL, chunk=chunk, conservativeness=share, simulation=simulation)
        for workload in TRACES
        for policy, chunk, share in flags
        for simulation in ("fast", "full")
    ]
    return [*cells, *large(), *tight(), *full_sequential(), *full_peers()]


def full_sequential() -> list[Cell]:
    """An engine that does not overlap, with the chunks that suit it."""
    return [
        Cell(policy, workload, FULL, engine="sequential", chunk=chunk, simulation=simulation)
        for workload in TRACES
        for policy, chunk in (("blendserve", 0), ("fcfs", 192), ("dfs", 192))
        for simulation in ("fast", "full")
    ]


def full_peers() -> list[Cell]:
    """Other peers, with the chunks that suit them.

    Not SGLang's own `random`, `lof` and `dfs-weight`: they look at every waiting request in each
    step, which with 100,000 of them takes days.
    """
    return [
        Cell(policy, workload, FULL, chunk=512, conservativeness=_LOW, simulation=simulation)
        for policy in ("lpt-ewma", "batchllm")
        for workload in TRACES
        for simulation in ("fast", "full")
    ]


def large() -> list[Cell]:
    """Twice as many requests."""
    return [
        Cell(policy, workload, LARGE, chunk=chunk, conservativeness=share, simulation=simulation)
        for policy, chunk, share in (("blendserve", 0, 1.0), ("dfs", 512, 1.0), ("fcfs", 512, _LOW))
        for workload in TRACES
        for simulation in ("fast", "full")
    ]


def tight() -> list[Cell]:
    """The same with a KV cache that is filled many times over, as by many more requests."""
    return [
        Cell(policy, workload, TIGHT, chunk=chunk, kv_slots=TIGHT_SLOTS, simulation=simulation)
        for workload in ("trace4", "trace1")
        for policy, chunk in (("blendserve", 0), ("dfs", 512))
        for simulation in ("fast", "full")
    ]


def interference() -> list[Cell]:
    """The traces where only what overlaps is slowed down, not whole steps."""
    return [cell for w in TRACES for cell in beside(w, MAIN, interference_scope="overlap")]


def convergence() -> list[Cell]:
    """How many requests it takes until the result stops moving."""
    counts = (50_000, 100_000, 200_000, 400_000, 800_000)
    return [cell for requests in counts for cell in beside("trace1", requests)]


def scale() -> list[Cell]:
    """That a replica stands for the whole."""
    return [cell for scale in (4, 8, 16) for cell in beside("trace1", MAIN, scale=scale)]


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
        Cell("blendserve", workload, requests, options=dict(options), simulation=simulation)
        for requests, simulation in ((SWEEP, "fast"), (SWEEP, "full"), (MAIN, "fast"))
        for workload in ("trace1", "trace4")
        for options in ABLATIONS.values()
    ]


SMALL_PARTS = ("split: none", "eviction: least recently used")
"""Parts whose absence is within what single runs differ by."""


def parts() -> list[Cell]:
    """These parts switched off, on all traces and for several seeds."""
    return [
        Cell("blendserve", workload, SEEDED, seed=seed, options=dict(ABLATIONS[name]))
        for name in SMALL_PARTS
        for workload in TRACES
        for seed in (0, *SEEDS)
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
        Cell("blendserve", workload, MAIN, options=dict(options))
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
    return [cell for workload in VARIED.values() for cell in beside(workload, MAIN)]


def pool() -> list[Cell]:
    """Tight and ample KV caches."""
    sizes = (200_000, None, 800_000)
    return [cell for slots in sizes for cell in beside("trace2", MAIN, kv_slots=slots)]


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
        cell
        for model, device, tp in MODELS
        for cell in beside("trace1", MAIN, model=model, device=device, tp=tp)
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


REPLICAS = (1, 2, 4, 8)


EACH = 200_000
"""Requests of each replica where the pool grows with their number."""


def ranks() -> list[Cell]:
    """Data parallel replicas: one pool divided as SGLang does, and as the paper does; and pools
    that grow with the number of replicas."""
    return [
        Cell("blendserve", "trace4", size, replicas=count, division=division if count > 1 else "")
        for count in REPLICAS
        for size, divisions in {EACH * count: (ROUND_ROBIN,), MAIN: DIVISIONS}.items()
        for division in (divisions if count > 1 else divisions[:1])
    ]


FLEETS = (2, 4, 8, 64)


def engines() -> list[Cell]:
    """One pool of the trace with few long outputs on several engines, at measured rates: fed from
    one plan, and divided beforehand; engines of different speed, and one that dies."""
    whole = Cell("blendserve", "trace4", MAIN, engine="lanes", rates="tables")
    one = replace(whole, options={"window": WINDOW})
    return [
        one,
        *(replace(whole, replicas=count, division=ONE_PLAN) for count in FLEETS),
        replace(whole, replicas=4, division=ONE_PLAN, fleet={"speeds": [1, 1, 0.5, 0.5]}),
        replace(whole, replicas=4, division=ONE_PLAN, fleet={"dies_after": 0.5}),
        *(replace(whole, replicas=count, division=ROUND_ROBIN) for count in FLEETS[:-1]),
        *(
            replace(cell, seed=1)
            for cell in (
                one,
                *(replace(whole, replicas=8, division=d) for d in (ONE_PLAN, ROUND_ROBIN)),
            )
        ),
    ]


def seeds() -> list[Cell]:
    """The main study's traces with other requests of the same kinds."""
    return [
        cell
        for seed in (0, *SEEDS)
        for workload in TRACES
        for cell in beside(workload, SEEDED, seed=seed)
    ]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "measured": measured,
    "users": users,
    "again": again,
    "hopper": hopper,
    "paces": paces,
    "alike": alike,
    "shortfalls": shortfalls,
    "windows": windows,
    "traces": traces,
    "full": full,
    "paper": paper,
    "grid": grid,
    "variance": variance,
    "interference": interference,
    "ablations": ablations,
    "parts": parts,
    "lengths": lengths,
    "models": models,
    "pool": pool,
    "ranks": ranks,
    "engines": engines,
    "convergence": convergence,
    "scale": scale,
    "seeds": seeds,
}


def can_be_run(study: str, cell: Cell) -> bool:
    """Whether there is a result, or the pace is still there to give one."""
    return cell.options.get("pace") in (None, *PACES) or cell.key() in load(study)


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
        run(name, [cell for cell in cells if can_be_run(name, cell)], args.minutes)


if __name__ == "__main__":
    main()
