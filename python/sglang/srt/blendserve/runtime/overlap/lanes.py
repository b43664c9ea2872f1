"""Two lanes of one device, on which a prefill and a decode run at once.

On a GPU each lane is a CUDA stream for every division of the SMs, taken from green contexts
(SGLang's ``sgl_kernel.spatial``); all bookkeeping of the scheduler stays on the stream it always
runs on, and a lane waits for it before each launch. SGLang's own loop does the bookkeeping on both
streams without such waits; here a slot list that one stream writes is never read unordered by
another.

On a CPU nothing runs at once: work is done when it is launched, and its end is only reported some
polls later, by a seeded draw, so that tests see the ends of both lanes in every order.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sglang.srt.blendserve.runtime.overlap.sm_split import divisions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_POLLS = 4
"""Polls after which emulated work is reported to be done, at most."""

_CPU_SMS = 128
"""SMs that the CPU pretends to have, so that divisions are chosen there too."""


class Work(Protocol):
    """Something launched on a lane."""

    def done(self) -> bool:
        """Return whether the work is over; True only once everything it wrote can be read."""
        ...

    def seconds(self) -> float:
        """Return how many seconds the work ran on the device; to be asked only after `done`."""
        ...


class Lane(Protocol):
    """Runs one thing after another, beside the other lane."""

    def launch(
        self, index: int, work: Callable[[], Result], after: Work | None = None
    ) -> tuple[Result, Work]:
        """Launch ``work`` on the streams of group ``index`` and return its result (not yet computed
        on a GPU) and when it is over. Later launches run after it.

        ``after``: work of the other lane that must be over on the device before it begins.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lanes:
    """Both lanes and what the device can be divided into.

    Groups are numbered as SGLang numbers its stream groups (and captures decode graphs for each):
    0 is the whole device for a prefill alone, the last the whole device for a decode alone, and
    ``first`` to ``first + len(counts) - 1`` are the divisions to choose from.
    """

    prefill: Lane
    decode: Lane
    counts: tuple[tuple[int, int], ...]
    """SMs (prefill, decode) of every group."""
    first: int
    """Group of the first division."""
    choices: int
    """How many divisions there are."""

    @property
    def alone(self) -> int:
        """The group of a decode without a prefill beside it."""
        return len(self.counts) - 1

    @property
    def shares(self) -> list[float]:
        """Prefill's share of the SMs at each division."""
        chosen = self.counts[self.first : self.first + self.choices]
        return [prefill / (prefill + decode) for prefill, decode in chosen]


class StreamLane:
    """A lane of CUDA streams, one per group."""

    def __init__(self, streams: Sequence[torch.cuda.Stream]) -> None:
        self._streams = streams
        self._last: torch.cuda.Stream | None = None

    def launch(
        self, index: int, work: Callable[[], Result], after: Work | None = None
    ) -> tuple[Result, Work]:
        """Launch ``work`` on the stream of group ``index``; see `Lane`."""
        import torch

        stream = self._streams[index]
        stream.wait_stream(torch.cuda.current_stream())
        if isinstance(after, _StreamWork):
            stream.wait_event(after.end)
        if self._last is not None and self._last is not stream:
            stream.wait_stream(self._last)
        self._last = stream
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        with torch.cuda.stream(stream):
            result = work()
        end.record(stream)
        return result, _StreamWork(begin, end)


@dataclass(slots=True)
class _StreamWork:
    begin: torch.cuda.Event
    end: torch.cuda.Event

    def done(self) -> bool:
        return bool(self.end.query())

    def seconds(self) -> float:
        return float(self.begin.elapsed_time(self.end)) * 1e-3


class EmulatedLane:
    """A lane for machines without a GPU; see the module's docstring."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def launch(
        self, index: int, work: Callable[[], Result], after: Work | None = None
    ) -> tuple[Result, Work]:
        """Do ``work`` at once; see `Lane`. Whatever was launched before is over already."""
        start = time.perf_counter()
        result = work()
        spent = time.perf_counter() - start
        return result, _EmulatedWork(self._random.randrange(_POLLS), spent)


@dataclass(slots=True)
class _EmulatedWork:
    polls: int
    spent: float

    def done(self) -> bool:
        self.polls -= 1
        return self.polls < 0

    def seconds(self) -> float:
        return self.spent


def make_lanes(device: str, gpu_id: int, split: str) -> Lanes:
    """Make the streams, and tell SGLang of them: its model runner captures graphs on each.

    ``split``: ``auto``, ``shared``, ``turns`` or a number of SMs for prefill (see
    `settings.Settings`).
    Raises ValueError naming the flag if the device cannot be divided so.
    """
    from sglang.srt.multiplex import pdmux_context

    if device == "cpu":
        counts, first, choices = _groups(_CPU_SMS, split, least=8, multiple=8)
        groups: list[tuple[Any, Any]] = [(None, None)] * len(counts)
        lanes = Lanes(EmulatedLane(0), EmulatedLane(1), counts, first, choices)
        logger.warning("BlendServe emulates the two lanes on the CPU: nothing runs at once there.")
    else:
        import torch

        from sgl_kernel import spatial

        total = spatial.get_sm_available(gpu_id)
        least, multiple = pdmux_context.get_arch_constraints(
            torch.cuda.get_device_capability(gpu_id)
        )
        counts, first, choices = _groups(total, split, least, multiple)
        groups = [_plain_streams(gpu_id)]
        groups += [
            spatial.create_greenctx_stream_by_value(prefill, decode, gpu_id)
            for prefill, decode in counts[1:-1]
        ]
        groups.append(_plain_streams(gpu_id))
        lanes = Lanes(
            StreamLane([prefill for prefill, _ in groups]),
            StreamLane([decode for _, decode in groups]),
            counts,
            first,
            choices,
        )
    pdmux_context.STREAM_GROUPS = groups
    pdmux_context.SM_COUNTS = list(counts)
    pdmux_context.set_current_stream_idx(0)
    logger.info("BlendServe overlaps prefill and decode; SMs (prefill, decode): %s", counts)
    return lanes


def group_number(split: str) -> int:
    """Return how many stream groups `make_lanes` makes at most (SGLang's ``--sm-group-num``)."""
    from sglang.srt.blendserve.runtime.overlap.sm_split import DIVISIONS

    return {"auto": DIVISIONS + 2, "shared": 2, "turns": 2}.get(split, 3)


def _groups(
    total: int, split: str, least: int, multiple: int
) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """SMs of each group, the first division's group, and the number of divisions."""
    if split in ("shared", "turns"):
        return ((total, total), (total, total)), 1, 1
    if split == "auto":
        between = divisions(total, least, multiple)
    else:
        prefill = int(split)
        if prefill % multiple or not least <= prefill <= total - least:
            raise ValueError(
                f"--blendserve-overlap-sm {split}: this device has {total} SMs; give a multiple of "
                f"{multiple} between {least} and {total - least}"
            )
        between = [(prefill, total - prefill)]
    return ((total, 0), *between, (0, total)), 1, len(between)


def _plain_streams(gpu_id: int) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Streams of the whole device; blocks of the second, decode's, are scheduled first."""
    import torch

    return torch.cuda.Stream(gpu_id, priority=0), torch.cuda.Stream(gpu_id, priority=-1)
