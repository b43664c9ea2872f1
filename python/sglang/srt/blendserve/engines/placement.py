"""Which cores and GPUs of this machine each of several engines gets."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.runtime.compat.server_args import release

_NODES = Path("/sys/devices/system/node")

_FOR_ONE = {
    "nnodes": 1,
    "base_gpu_id": 0,
    "gpu_id_step": 1,
    "nccl_port": None,
    "dist_init_addr": None,
    "enable_dp_attention": False,
}
"""Settings that place an engine, or give it a port, and their values where nobody has set them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an engine runs.

    Attributes:
        cores: its processors; none: all.
        environment: variables of its process.
    """

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def on_cores(engines: int, ranks: int, *, threads_given: bool) -> list[Placement]:
    """Divide the cores of this process among engines without a GPU, those of a NUMA node together.

    Args:
        ranks: tensor parallel ranks of each engine.
        threads_given: whether the user has said how many threads each has.

    Raises:
        ValueError: there are fewer cores than engines.
    """
    cores = _by_node(sorted(os.sched_getaffinity(0)), _numa_nodes())
    if engines > len(cores):
        raise ValueError(f"{engines} engines: there are {len(cores)} cores for this process.")
    placed = []
    for number in range(engines):
        own = cores[number * len(cores) // engines : (number + 1) * len(cores) // engines]
        parts = [own[r * len(own) // ranks : (r + 1) * len(own) // ranks] for r in range(ranks)]
        environment = {}
        if not threads_given:
            environment["OMP_NUM_THREADS"] = str(max(1, len(own) // ranks))
        if all(parts):
            bound = "|".join(",".join(map(str, part)) for part in parts)
            environment["SGLANG_CPU_OMP_THREADS_BIND"] = bound
        placed.append(Placement(tuple(own), environment))
    return placed


def on_gpus(engines: int, gpus_each: int, visible: Sequence[str]) -> list[Placement]:
    """Divide the ``visible`` GPUs, by number or id, among engines.

    Raises:
        ValueError: there are too few.
    """
    needed = engines * gpus_each
    if needed > len(visible):
        raise ValueError(
            f"{engines} engines of {gpus_each} GPU{'s' * (gpus_each > 1)} each: {needed} are "
            f"needed, and {len(visible)} are visible."
        )
    own = (visible[n * gpus_each : (n + 1) * gpus_each] for n in range(engines))
    return [Placement(environment={"CUDA_VISIBLE_DEVICES": ",".join(gpus)}) for gpus in own]


def divided(engines: int, server_args: Any, *, threads_given: bool) -> list[Placement]:
    """Divide this machine among engines with the same settings.

    Args:
        server_args: of each, SGLang's, resolved.
        threads_given: whether the user has said how many threads an engine on a CPU has.

    Raises:
        ValueError: there are too few cores, or GPUs, or a setting is for one engine.
    """
    gpus_each = gpus_of(server_args)
    if not gpus_each:
        ranks = release.view(server_args).tp_size
        return on_cores(engines, ranks, threads_given=threads_given)
    return on_gpus(engines, gpus_each, visible_gpus())


def gpus_of(server_args: Any) -> int:
    """Return how many GPUs one of several engines takes, 0 on a CPU.

    Args:
        server_args: SGLang's, resolved.

    Raises:
        ValueError: a setting is for one engine on a machine, or for several machines.
    """
    fields = release.view(server_args)
    for name, alone in _FOR_ONE.items():
        if getattr(fields, name, alone) != alone:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is for one engine; leave it out where there are several.")
    if fields.device == "cpu":
        return 0
    return int(fields.tp_size * fields.pp_size * fields.dp_size)


def confine(process_ids: Iterable[int], cores: Sequence[int]) -> None:
    """Have processes that run already stay on some cores, with all their threads."""
    for process_id in process_ids:
        for thread in Path(f"/proc/{process_id}/task").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that this process may use, by number or id (imports torch)."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _numa_nodes() -> list[set[int]]:
    lists = sorted(_NODES.glob("node[0-9]*/cpulist"))
    return [_cores_of(path.read_text()) for path in lists]


def _cores_of(text: str) -> set[int]:
    """Return the cores of a list as the kernel writes it: ``0-3,8``."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return found


def _by_node(cores: list[int], nodes: list[set[int]]) -> list[int]:
    """Return cores with those of a node together."""
    node = {core: number for number, own in enumerate(nodes) for core in own}
    return sorted(cores, key=lambda core: (node.get(core, len(nodes)), core))
