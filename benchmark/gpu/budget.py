"""The time a call may take, and what is left out when it does not suffice."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """Seconds since ``began`` (on the clock of `time.time`), against a limit."""

    limit: float
    began: float
    reserve: float = 20.0
    """Kept for the summary and for writing results."""
    dropped: list[str] = field(default_factory=list)
    """What was left out, each with the reason."""

    @property
    def left(self) -> float:
        """Seconds for work."""
        return self.limit - self.reserve - (time.time() - self.began)

    def allows(self, what: str, seconds: float) -> bool:
        """Whether ``what``, expected to take ``seconds``, still fits; if not, it is noted."""
        if seconds <= self.left:
            return True
        self.dropped.append(
            f"{what}: needs about {seconds:.0f} s, {max(self.left, 0):.0f} s were left"
        )
        return False
