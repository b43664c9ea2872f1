"""A workload: lengths and shared prefixes of n requests, and random prompts that have them.

True output lengths are the device's secret. `Workload.prompts` and `Workload.max_tokens` are all
that a policy may see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.cost.cost_model import CostModel, density

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]

FIRST_TOKEN, LAST_TOKEN = 1000, 30_000
"""Random token ids lie between these, inside every model's vocabulary, above its special ones."""


@dataclass(frozen=True, slots=True)
class Workload:
    """n requests in their order of arrival; all arrays (n,), lengths in tokens."""

    name: str
    prompt_tokens: Ints
    output_tokens: Ints
    """True lengths: for the device and for bounds, never for a policy."""
    max_tokens: Ints
    """Cap on the output, well above the true length; a policy may see it."""
    prefix: Ints
    """Number of the prefix a request starts with; -1 for none."""
    prefix_tokens: Ints
    """Length of the shared prefix behind the system prompt; 0 for none."""
    source: Ints
    """Which of ``sources`` a request was drawn from."""
    sources: tuple[str, ...]
    seed: int
    system_tokens: int = 0
    """Tokens at the start of every prompt that are the same for all requests of a source."""

    def __post_init__(self) -> None:
        n = self.prompt_tokens.size
        for name in ("output_tokens", "max_tokens", "prefix", "prefix_tokens", "source"):
            assert getattr(self, name).shape == (n,), f"{name} must have shape ({n},)"
        assert (self.prompt_tokens >= 1).all(), "empty prompt"
        assert (self.output_tokens >= 1).all(), "empty output"
        assert (self.output_tokens <= self.max_tokens).all(), "an output is longer than its cap"
        assert (self.shared_start < self.prompt_tokens).all(), "a prefix is the whole prompt"

    @property
    def size(self) -> int:
        """Number of requests."""
        return self.prompt_tokens.size

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all requests (the paper's measure of throughput)."""
        return int(self.prompt_tokens.sum() + self.output_tokens.sum())

    @property
    def shared_start(self) -> Ints:
        """(n,) tokens of each prompt that others may have too: system prompt and prefix."""
        return self.prefix_tokens + self.system_tokens

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that need not be computed when each prefix is computed once."""
        once = sum(self._each_prefix().values()) + self.system_tokens * self._present().size
        return int(self.shared_start.sum()) - once

    @property
    def sharing(self) -> float:
        """Share of all prompt tokens that need not be computed when each prefix is computed once
        (paper's s_o)."""
        return self.shared_tokens / int(self.prompt_tokens.sum())

    def computed_tokens(self) -> Ints:
        """(n,) prompt tokens of each request when one of each prefix computes it: of the longest
        uses the one with the longest output, wherever it stands in the file."""
        own = self.prompt_tokens - self.shared_start
        output = -self.output_tokens
        by_source = np.lexsort((output, self.source))
        first = by_source[np.unique(self.source[by_source], return_index=True)[1]]
        own[first] += self.system_tokens
        has = np.flatnonzero(self.prefix >= 0)
        has = has[np.lexsort((output[has], -self.prefix_tokens[has], self.prefix[has]))]
        first = has[np.unique(self.prefix[has], return_index=True)[1]]
        own[first] += self.prefix_tokens[first]
        return own

    def density(self, cost: CostModel) -> float:
        """Compute density with optimal sharing (paper's rho(root))."""
        compute = cost.compute_seconds(
            self.prompt_tokens, self.output_tokens, self.computed_tokens()
        )
        memory = cost.memory_seconds(self.prompt_tokens, self.output_tokens)
        return float(density(compute.sum(), memory.sum()))

    def replica(self, scale: float) -> Workload:
        """The workload of a 1/``scale`` replica, all lengths divided by ``scale``.

        Rounds up or down at random so that sums keep; the first output token, which no decode step
        makes, stays whole.
        """
        if scale == 1:
            return self
        rng = np.random.default_rng([self.seed, 1])

        def scaled(values: Ints) -> Ints:
            return np.floor(values / scale + rng.random(values.size)).astype(np.int64)

        prefixes = self._each_prefix()
        lengths = np.zeros(max(prefixes, default=-1) + 2, dtype=np.int64)
        lengths[list(prefixes)] = scaled(np.array(list(prefixes.values()), dtype=np.int64))
        whole = np.where(self.prefix >= 0, lengths[self.prefix], 0)
        share = self.prefix_tokens / np.maximum(self._whole_prefix(prefixes), 1)
        prefix_tokens = np.floor(whole * share).astype(np.int64)
        own = np.maximum(scaled(self.prompt_tokens - self.shared_start), 1)
        system = max(round(self.system_tokens / scale), 1) if self.system_tokens else 0
        output = 1 + scaled(self.output_tokens - 1)
        return replace(
            self,
            prompt_tokens=system + prefix_tokens + own,
            output_tokens=output,
            max_tokens=np.maximum(np.ceil(self.max_tokens / scale).astype(np.int64), output),
            prefix_tokens=prefix_tokens,
            system_tokens=system,
        )

    def with_system_prompts(self, tokens: int) -> Workload:
        """Return the requests behind system prompts of ``tokens`` tokens, one for each source."""
        assert self.system_tokens == 0, "there are system prompts already"
        return replace(self, prompt_tokens=self.prompt_tokens + tokens, system_tokens=tokens)

    def take(self, keep: Ints) -> Workload:
        """The requests ``keep``, in this order."""
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[keep],
            output_tokens=self.output_tokens[keep],
            max_tokens=self.max_tokens[keep],
            prefix=self.prefix[keep],
            prefix_tokens=self.prefix_tokens[keep],
            source=self.source[keep],
        )

    def prompts(self) -> list[Tokens]:
        """n arrays of random token ids, equal where requests share a prefix; seeded."""
        rng = np.random.default_rng([self.seed, 2])
        flat = rng.integers(FIRST_TOKEN, LAST_TOKEN, int(self.prompt_tokens.sum()), dtype=np.int32)
        ends = np.cumsum(self.prompt_tokens)
        prompts: list[Tokens] = np.split(flat, ends[:-1])
        prefixes = {
            number: rng.integers(FIRST_TOKEN, LAST_TOKEN, length, dtype=np.int32)
            for number, length in sorted(self._each_prefix().items())
        }
        start = self.system_tokens
        for index in np.flatnonzero(self.prefix >= 0):
            length = self.prefix_tokens[index]
            prompts[index][start : start + length] = prefixes[int(self.prefix[index])][:length]
        if start:
            shape = (len(self.sources), start)
            system = rng.integers(FIRST_TOKEN, LAST_TOKEN, shape, dtype=np.int32)
            for prompt, source in zip(prompts, self.source.tolist(), strict=True):
                prompt[:start] = system[source]
        return prompts

    def _present(self) -> Ints:
        return np.unique(self.source)

    def _each_prefix(self) -> dict[int, int]:
        """Length of the longest use of each prefix."""
        has = self.prefix >= 0
        numbers, place = np.unique(self.prefix[has], return_inverse=True)
        longest = np.zeros(numbers.size, dtype=np.int64)
        np.maximum.at(longest, place, self.prefix_tokens[has])
        return dict(zip(numbers.tolist(), longest.tolist(), strict=True))

    def _whole_prefix(self, prefixes: dict[int, int]) -> Ints:
        lengths = np.zeros(max(prefixes, default=-1) + 2, dtype=np.int64)
        lengths[list(prefixes)] = list(prefixes.values())
        return np.where(self.prefix >= 0, lengths[self.prefix], 0)


def cap_for(longest: int) -> int:
    """A ``max_tokens`` as somebody would set it: the power of two above 1.25 x the longest."""
    return 1 << max(int(np.ceil(np.log2(1.25 * longest))), 4)


def concatenated(name: str, parts: Sequence[Workload], seed: int, *, shuffle: bool) -> Workload:
    """All requests of ``parts``, whose prefixes stay apart; ``shuffle``: in random order."""
    sources = tuple(dict.fromkeys(s for part in parts for s in part.sources))
    assert len({part.system_tokens for part in parts}) == 1, "system prompts of several lengths"
    prefix, offset = [], 0
    for part in parts:
        prefix.append(np.where(part.prefix >= 0, part.prefix + offset, -1))
        offset += int(part.prefix.max(initial=-1)) + 1

    def joined(field: str) -> Ints:
        values: Ints = np.concatenate([getattr(part, field) for part in parts])
        return values

    number = [np.array([sources.index(s) for s in part.sources])[part.source] for part in parts]
    whole = Workload(
        name=name,
        prompt_tokens=joined("prompt_tokens"),
        output_tokens=joined("output_tokens"),
        max_tokens=joined("max_tokens"),
        prefix=np.concatenate(prefix),
        prefix_tokens=joined("prefix_tokens"),
        source=np.concatenate(number),
        sources=sources,
        seed=seed,
        system_tokens=parts[0].system_tokens,
    )
    if not shuffle:
        return whole
    return whole.take(np.random.default_rng([seed, 3]).permutation(whole.size))
