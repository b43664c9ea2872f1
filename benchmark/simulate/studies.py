"""Run a study of the simulator, or continue one.

    python benchmark/simulate/studies.py convergence
    python benchmark/simulate/studies.py all

Results go to ``benchmark/simulate/results/STUDY.jsonl``; cells that are there are not run again.
``python benchmark/simulate/tables.py`` makes the tables and figures of docs/ from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cells import Cell, run

TRACES = ("trace1", "trace2", "trace3", "trace4")


def convergence() -> list[Cell]:
    """How many requests it takes until the result stops moving."""
    return [
        cell
        for requests in (50_000, 100_000, 200_000, 400_000, 800_000)
        for cell in (
            Cell("dfs", requests=requests, chunk=512),
            Cell("dfs", requests=requests, chunk=2048),
            Cell("blendserve", requests=requests),
        )
    ]


ENGINES = ("overlap", "sequential")
PEER_CHUNKS = {
    "dfs": (256, 512, 1024, 2048, 8192),
    "fcfs": (256, 512, 1024, 2048, 8192),
    "random": (512, 2048),
    "lof": (512, 2048),
    "dfs-weight": (512, 2048),
    "lpt-ewma": (512, 2048),
    "batchllm": (512, 2048),
}


def peers() -> list[Cell]:
    """The four traces x peers x engines, each at several chunk sizes."""
    return [
        Cell(policy, workload, engine=engine, chunk=chunk)
        for engine in ENGINES
        for workload in TRACES
        for policy, chunks in PEER_CHUNKS.items()
        for chunk in chunks
    ]


def traces() -> list[Cell]:
    """The four traces under our policy, the strongest peers and the paper's scanner."""
    peers_at = (("dfs", 512), ("dfs", 2048), ("fcfs", 256), ("fcfs", 512))
    groups = [
        *(("overlap", policy, chunk) for policy, chunk in peers_at),
        ("overlap", "blendserve", 0),
        *(("sequential", policy, chunk) for policy, chunk in peers_at),
        ("sequential", "blendserve", 0),
        ("overlap", "paper", 0),
    ]
    return [
        Cell(policy, workload, requests=200_000, engine=engine, chunk=chunk)
        for engine, policy, chunk in groups
        for workload in TRACES
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
}
"""Each part of the policy switched off alone."""

_SMALLER = 200_000


def ablations() -> list[Cell]:
    """Each part of the policy switched off alone, on a compute- and a memory-bound trace."""
    return [
        Cell("blendserve", workload, requests=_SMALLER, options=dict(options))
        for workload in ("trace1", "trace4")
        for options in ABLATIONS.values()
    ]


def lengths() -> list[Cell]:
    """What knowing output lengths is worth, and what wrong ones cost."""
    kinds: list[dict[str, object]] = [
        {"told": "true"},
        {},
        {"sample": 0.1},
        {"told": "wrong"},
    ]
    return [
        Cell("blendserve", workload, requests=_SMALLER, options=kind)
        for workload in ("trace1", "trace4")
        for kind in kinds
    ]


def variance() -> list[Cell]:
    """Traces whose output lengths vary much: ShareGPT and reasoning."""
    return [
        Cell(policy, workload, requests=100_000, chunk=chunk)
        for workload in (
            "density=1.0,sharing=0.05,compute=burstgpt,memory=reasoning",
            "density=1.0,sharing=0.05,compute=azure_code,memory=sharegpt",
        )
        for policy, chunk in (("blendserve", 0), ("dfs", 512), ("dfs", 2048), ("fcfs", 512))
    ]


def pool() -> list[Cell]:
    """Tight and ample KV caches."""
    return [
        Cell(policy, "trace2", requests=_SMALLER, chunk=chunk, kv_slots=slots)
        for slots in (200_000, 800_000)
        for policy, chunk in (("blendserve", 0), ("dfs", 512), ("fcfs", 512))
    ]


def models() -> list[Cell]:
    """Other models and devices, on the same requests."""
    return [
        Cell(policy, "trace1", requests=_SMALLER, chunk=chunk, model=model, device=device, tp=tp)
        for model, device, tp in (
            ("Llama-3.1-70B", "A100-80G", 8),
            ("Qwen2.5-7B", "H100", 1),
            ("Qwen2.5-72B", "H200", 4),
            ("Llama-2-7B", "A100-80G", 1),
            ("DeepSeek-67B", "A100-80G", 8),
            ("Qwen3-30B-A3B", "H100", 2),
            ("DeepSeek-V2-Lite", "H100", 1),
        )
        for policy, chunk in (("blendserve", 0), ("dfs", 512), ("dfs", 2048), ("fcfs", 512))
    ]


def grid() -> list[Cell]:
    """The paper's 65 mixes of density and sharing."""
    return [
        Cell(policy, f"density={density / 100:g},sharing={sharing / 100:g}", 100_000, chunk=chunk)
        for sharing in range(5, 46, 10)
        for density in range(80, 141, 5)
        for policy, chunk in (("blendserve", 0), ("dfs", 512), ("dfs", 2048), ("fcfs", 512))
    ]


def scale() -> list[Cell]:
    """That a replica stands for the whole."""
    return [
        Cell(policy, "trace1", requests=100_000, chunk=chunk, scale=scale)
        for scale in (4, 8, 16)
        for policy, chunk in (("blendserve", 0), ("dfs", 512))
    ]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "convergence": convergence,
    "peers": peers,
    "traces": traces,
    "ablations": ablations,
    "lengths": lengths,
    "variance": variance,
    "pool": pool,
    "models": models,
    "grid": grid,
    "scale": scale,
}


def main() -> None:
    """Run the studies that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="+", choices=[*STUDIES, "all"])
    names = parser.parse_args().study
    for name in STUDIES if "all" in names else names:
        run(name, STUDIES[name]())


if __name__ == "__main__":
    main()
