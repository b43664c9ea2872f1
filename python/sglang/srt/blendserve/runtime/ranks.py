"""Agreement of the ranks that must take the same decisions in every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RankGroup:
    """The tensor parallel ranks of one engine.

    They launch the same steps, so a method that talks to the other ranks is called by all of them
    at the same point of their work. A rank that is alone talks to nobody.
    """

    size: int = 1
    process_group: Any = None
    """torch's process group of these ranks on the CPU."""

    def of_first(self, *values: float) -> tuple[float, ...]:
        """Return the first rank's ``values``, which each rank may have measured differently."""
        if self.size == 1:
            return values
        import torch

        agreed = torch.tensor(values, dtype=torch.float64)
        first = torch.distributed.get_global_rank(self.process_group, 0)
        torch.distributed.broadcast(agreed, src=first, group=self.process_group)
        return tuple(agreed.tolist())

    def all(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each of ``flags`` whether it is true on every rank."""
        if self.size == 1:
            return flags
        import torch

        least = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(
            least, op=torch.distributed.ReduceOp.MIN, group=self.process_group
        )
        return tuple(bool(flag) for flag in least.tolist())
