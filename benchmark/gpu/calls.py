"""The three calls that a short loan of a GPU is spent on, each at most 200 seconds.

A call is a set of defaults for the flags of `bench`; flags that are given go before them. Each may
be repeated: what has a result in its folder is not run again. The first alone is worth having: ours
against the strongest stock settings of the simulation, on a model whose engine starts soon, and
then what two lanes cost each other on this card.
"""

from __future__ import annotations

from typing import Any

_PAIR = "blend-chunks,dfs-mixed-low"

CALLS: dict[str, dict[str, Any]] = {
    "a": {
        "only": "facts,throughput,calibrate,utilisation",
        "variants": _PAIR,
        "model": "Llama-3.2-1B",
        "scale": 16.0,
        "waves": 1.0,
        "start_seconds": 40.0,
    },
    "b": {
        "only": "facts,throughput,utilisation",
        "variants": _PAIR,
        "model": "Llama-3.1-8B",
        "scale": 16.0,
        "waves": 0.125,
        "start_seconds": 70.0,
    },
    "c": {
        "only": "facts,attention,throughput,utilisation",
        "variants": "blend-chunks,fcfs-mixed-low",
        "traces": "trace2",
        "model": "Llama-3.2-1B",
        "scale": 16.0,
        "waves": 1.0,
        "start_seconds": 40.0,
    },
}
"""By name. A: facts, ours against stock, the interference. B: the 8B shape. C: another trace, the
other stock variant."""

COMMON = {"rounds": 1, "budget": 200.0}


def spec_of(gpu: str) -> str:
    """Return which card of the cost model ``nvidia-smi``'s name is; an H200 where it is neither."""
    return "H100" if "H100" in gpu else "H200"
