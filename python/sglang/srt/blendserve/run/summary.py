"""The summary of a run: what was answered, how fast, and how it compares with the optimum."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sglang.srt.blendserve import __version__, releases


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run. Counts of lines are those of the whole batch; tokens, seconds and all
    that follows from them are those of this run, without the answers a resumed run found.

    Attributes:
        policy: SGLang's schedule policy.
        finished: whether every line has its result.
        requests: lines of the input that are not blank.
        completed, failed: lines with an answer, lines with an error.
        resumed: results that an earlier run had left.
        input_tokens: prompt tokens, each prompt once whatever its ``n``.
        output_tokens: generated tokens.
        cached_tokens: prompt tokens found in the prefix cache; a lower bound where lines ask for
            ``n`` > 1 (see `Observation`).
        seconds: from the first request sent to the last result.
        startup_seconds: start of the engine, not part of ``seconds``.
        prepare_seconds: how long it took to make the request store, beside all else; None where all
            lines went to the engine at once.
        first_forward_seconds: from the ready engine to the first request of the batch in a forward
            pass; None under a policy of SGLang's.
        tokens_per_second: (input + output tokens) / seconds, as the paper counts throughput.
        prefix_sharing: cached_tokens / input_tokens.
        prefix_sharing_optimum, planned_density, measured_density: see `PlanFigures`; None where
            they are not known, for the reason in ``note``.
        retractions: times a sequence was thrown out of the KV cache and started over.
        answered_by: lines that each of several engines has answered; none where there is one.
    """

    policy: str
    finished: bool
    requests: int
    completed: int
    failed: int
    resumed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    seconds: float
    startup_seconds: float
    prepare_seconds: float | None
    first_forward_seconds: float | None
    tokens_per_second: float
    prefix_sharing: float
    prefix_sharing_optimum: float | None
    retractions: int
    planned_density: float | None
    measured_density: float | None
    note: str | None
    answered_by: list[int] = field(default_factory=list)
    sglang_version: str | None = field(default_factory=releases.found)
    blendserve_version: str = __version__

    def write(self, path: Path) -> None:
        """Write the summary as a JSON object.

        Raises:
            OSError: it cannot be written.
        """
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def lines(self) -> list[str]:
        """Return the summary for a person to read."""
        resumed = f" ({self.resumed} of them by an earlier run)" if self.resumed else ""
        missing = self.requests - self.completed - self.failed
        rows = [
            ("requests", f"{self.requests}: {self.completed} completed, {self.failed} failed"
             + (f", {missing} still to do" if missing else "") + resumed),
            ("policy", self.policy),
            ("tokens", f"{self.input_tokens} in ({self.cached_tokens} from the prefix cache), "
             f"{self.output_tokens} out"),
            ("time", f"{self.seconds:.1f} s, after {self.startup_seconds:.1f} s of engine start"),
            ("throughput", f"{self.tokens_per_second:.1f} tokens/s"),
            ("prefix sharing", f"{self.prefix_sharing:.1%}" + (
                "" if self.prefix_sharing_optimum is None
                else f", {self.prefix_sharing_optimum:.1%} at the optimum")),
            ("density", "unknown" if self.planned_density is None
             else f"{self.planned_density:.3g} planned, {self.measured_density:.3g} measured"),
            ("retractions", str(self.retractions)),
        ]  # fmt: skip
        if self.answered_by:
            rows.append(("engines", ", ".join(f"{one} lines" for one in self.answered_by)))
        lines = [f"{name:<15} {value}" for name, value in rows]
        return [*lines, f"{'note':<15} {self.note}"] if self.note else lines
