"""Workloads by recipe, mixed as in the paper: a compute-bound trace, a memory-bound one to reach a
compute density, and one with shared prefixes to reach a sharing ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from sglang.srt.blendserve.cost.cost_model import CostModel
from sglang.srt.blendserve.cost.device_spec import DeviceSpec
from sglang.srt.blendserve.cost.model_spec import ModelSpec
from sglang.srt.blendserve.simulator.length_traces import LengthTrace, WorkloadError
from sglang.srt.blendserve.simulator.workload import Workload, concatenated

_ROUNDS = 4
"""Times that the counts are solved for again with the means of what they draw."""
_ROUNDING = 3
"""Requests of a kind below none that a small mix may ask for, which then has none of them."""

PAPER_TRACES = {
    "trace1": "density=1.4,sharing=0.35",
    "trace2": "density=0.9,sharing=0.35",
    "trace3": "density=1.4,sharing=0.05",
    "trace4": "density=0.9,sharing=0.05",
}
"""The paper's four traces by name."""


def reference_cost() -> CostModel:
    """What densities of recipes refer to: Llama-3.1-8B on one A100, as in the paper."""
    return CostModel(ModelSpec.named("Llama-3.1-8B"), DeviceSpec.named("A100-80G"))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A mix of three sources. Any of them may be ``none`` if its target is left out too."""

    density: float = 1.4
    """Compute density with optimal sharing, for Llama-3.1-8B on an A100."""
    sharing: float = 0.35
    """Share of prompt tokens that prefix sharing saves."""
    compute: str = "burstgpt"
    memory: str = "video"
    prefix: str = "mmlu"
    system: int = 8
    """Tokens of each source's system prompt, as the paper adds one to each trace. It does not say
    how long; sharing of 0.02 within BurstGPT, as it reports, takes about 8 tokens a prompt."""

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """From ``density=1.4,sharing=0.35,compute=burstgpt,memory=video,prefix=mmlu``.

        Fields that are left out keep their defaults; ``trace1`` to ``trace4`` stand for the density
        and sharing of the paper's, and fields after them count more.
        Raises WorkloadError naming the field.
        """
        values: dict[str, str | float] = {}
        name, _, more = text.partition(",")
        for part in filter(None, f"{PAPER_TRACES.get(name, name)},{more}".split(",")):
            key, _, value = part.partition("=")
            if key not in {f.name for f in fields(cls)} or not value:
                raise WorkloadError(
                    f"workload field {part!r}: write name=value with a name out of "
                    f"{', '.join(f.name for f in fields(cls))}, or one of {', '.join(PAPER_TRACES)}"
                )
            if key in ("density", "sharing", "system"):
                try:
                    values[key] = int(value) if key == "system" else float(value)
                except ValueError:
                    raise WorkloadError(f"workload field {part!r}: not a number") from None
                if values[key] < 0:  # type: ignore[operator]
                    raise WorkloadError(f"workload field {part!r}: must not be negative")
            else:
                values[key] = value
        return cls(**values)  # type: ignore[arg-type]

    def workload(self, requests: int, seed: int) -> Workload:
        """``requests`` requests, shuffled; the same for the same arguments.

        Raises WorkloadError if no mix of the three reaches density and sharing.
        """
        sources = [LengthTrace.named(n) for n in (self.compute, self.memory, self.prefix)]
        counts = [requests] * len(sources)
        for _ in range(_ROUNDS):  # the means of what is drawn depend a little on how much is drawn
            drawn = [max(count, 1) for count in counts]
            counts = self._counts(self._draw(sources, drawn, seed), requests)
        chosen = self._draw(sources, counts, seed)
        return concatenated(
            f"density={self.density:g},sharing={self.sharing:g},compute={self.compute},"
            f"memory={self.memory},prefix={self.prefix},system={self.system}",
            chosen,
            seed,
            shuffle=True,
        )

    def _draw(
        self, sources: Sequence[LengthTrace], counts: Sequence[int], seed: int
    ) -> list[Workload]:
        return [
            source.draw(count, seed, stream).with_system_prompts(self.system)
            for stream, (source, count) in enumerate(zip(sources, counts, strict=True))
        ]

    def _counts(self, parts: Sequence[Workload], requests: int) -> list[int]:
        """How many of each: solves total, density and sharing, all linear in the counts."""
        cost = reference_cost()
        rows, right = [np.ones(3)], [float(requests)]
        work, saved = [], []
        once_tokens = once_seconds = 0.0
        for part in parts:
            own = part.prompt_tokens - part.shared_start
            compute = cost.compute_seconds(part.prompt_tokens, part.output_tokens, own).mean()
            memory = cost.memory_seconds(part.prompt_tokens, part.output_tokens).mean()
            work.append(float(compute - self.density * memory))
            saved.append(float((part.shared_start - self.sharing * part.prompt_tokens).mean()))
            each = [*part._each_prefix().values(), part.system_tokens]
            once_tokens += sum(each)
            once_seconds += float(cost.prefill_seconds(np.array(list(each), dtype=float)).sum())
        rows += [np.array(work), np.array(saved)]
        right += [-once_seconds, once_tokens]
        solved = np.linalg.solve(np.stack(rows), np.array(right))
        counts = [round(float(c)) for c in solved]
        # Few requests have means of their own, which may miss the target a little.
        if min(counts) < -max(_ROUNDING, requests // 100) or not np.isfinite(solved).all():
            raise WorkloadError(
                f"no mix of {self.compute}, {self.memory} and {self.prefix} has density "
                f"{self.density:g} and sharing {self.sharing:g}; it would take "
                + ", ".join(f"{c} {p.sources[0]}" for c, p in zip(counts, parts, strict=True))
            )
        counts = [max(count, 0) for count in counts]
        largest = counts.index(max(counts))
        counts[largest] += requests - sum(counts)
        return counts


def from_files(entries: Sequence[str], requests: int, seed: int) -> Workload:
    """A workload from trace files ``path`` or ``path:weight`` (weights of requests, default 1).

    Rows are drawn with replacement; the order is shuffled. Raises WorkloadError.
    """
    sources = []
    for entry in entries:
        path, colon, weight = entry.rpartition(":")
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            path, number = entry, 1.0
        if not number > 0:
            raise WorkloadError(f"--trace {entry}: the weight after ':' must be positive")
        sources.append((LengthTrace.from_file(path if colon and path else entry), number))
    return from_traces(sources, "+".join(entries), requests, seed)


def from_traces(
    sources: Sequence[tuple[LengthTrace, float]], name: str, requests: int, seed: int
) -> Workload:
    """A workload called ``name`` of traces with their weights of requests, as `from_files`."""
    weights = np.array([weight for _, weight in sources])
    share = weights / weights.sum()
    ends = np.round(np.cumsum(share) * requests).astype(int)
    counts = np.diff(ends, prepend=0)
    drawn = [
        source.draw(int(count), seed, stream)
        for stream, ((source, _), count) in enumerate(zip(sources, counts, strict=True))
    ]
    return concatenated(name, drawn, seed, shuffle=True)
