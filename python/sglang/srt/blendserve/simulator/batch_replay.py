"""A batch that has been answered, as a workload: its real prompts and its real output lengths.

What another policy, another cache or another device would have made of it is then a question for
the simulator. Prompts cannot be shortened, so such a workload runs at scale 1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sglang.srt.blendserve.plan.prefix_tree import PrefixTree
from sglang.srt.blendserve.simulator.length_traces import WorkloadError
from sglang.srt.blendserve.simulator.workload import Ints, Tokens, Workload

if TYPE_CHECKING:
    from sglang.srt.blendserve.requests.tokenizing import TokenizedBatch


@dataclass(frozen=True, slots=True)
class BatchReplay(Workload):
    """A workload whose prompts are given; ``prefix`` and ``system_tokens`` say nothing here."""

    given: tuple[Tokens, ...] = ()
    """n arrays of token ids, in the order of arrival."""
    own_tokens: Ints | None = None
    """(n,) prompt tokens that a request computes if all before it in depth-first order are
    cached."""

    @classmethod
    def of(
        cls,
        name: str,
        prompts: list[Tokens],
        output_tokens: Ints,
        max_tokens: Ints,
    ) -> BatchReplay:
        """From (n,) ``prompts`` and lengths, tokens."""
        n = len(prompts)
        none = np.zeros(n, dtype=np.int64)
        sizes = np.array([prompt.size for prompt in prompts], dtype=np.int64)
        return cls(
            name=name,
            prompt_tokens=sizes,
            output_tokens=output_tokens,
            max_tokens=np.maximum(max_tokens, output_tokens),
            prefix=none - 1,
            prefix_tokens=none,
            source=none,
            sources=(name,),
            seed=0,
            given=tuple(prompts),
            own_tokens=_own_tokens(prompts),
        )

    @classmethod
    def read(cls, batch: str, answers: str, model_path: str) -> BatchReplay:
        """From a batch file and the answers of a run, tokenized for ``model_path``; both wherever
        and in whatever form `request_file` reads.

        Lines without an answer, and those that cannot be tokenized, are left out; lines of several
        sequences have the mean length. Raises WorkloadError naming the file and the reason.
        """
        from sglang.srt.blendserve.batch_file.types import BatchFileError
        from sglang.srt.blendserve.batch_file.validation import parse_lines
        from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts
        from sglang.srt.blendserve.requests.measured_lengths import measured_lengths
        from sglang.srt.blendserve.requests.tokenizing import tokenize_batch
        from sglang.srt.blendserve.tables import remote, request_file

        try:
            with request_file.opened(batch) as file:
                tokenized = tokenize_batch(parse_lines(file), EnginePrompts.of(model_path))
            lengths = measured_lengths(tokenized, answers)
        except (BatchFileError, OSError, ValueError) as error:
            raise WorkloadError(f"--batch {remote.shown(batch)}: {error}") from error
        return cls._answered(remote.name_of(batch).partition(".")[0], tokenized, lengths)

    @classmethod
    def _answered(
        cls, name: str, batch: TokenizedBatch, lengths: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> BatchReplay:
        have = np.flatnonzero(np.isfinite(lengths))
        output = np.maximum(np.round(lengths[have]), 1).astype(np.int64)
        longest = int(output.max())
        caps = [batch.max_tokens[i] or 2 * longest for i in have.tolist()]
        return cls.of(
            name,
            [batch.prompts[i] for i in have.tolist()],
            output,
            np.array(caps, dtype=np.int64),
        )

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that need not be computed when each prefix is computed once."""
        return int(self.prompt_tokens.sum() - self.computed_tokens().sum())

    def computed_tokens(self) -> Ints:
        """(n,) prompt tokens of each request when the first of each prefix computes it."""
        assert self.own_tokens is not None
        return self.own_tokens.copy()

    def replica(self, scale: float) -> Workload:
        """Return the batch itself.

        Raises WorkloadError for any scale but 1, because real prompts cannot be divided.
        """
        if scale != 1:
            raise WorkloadError(f"--scale {scale:g}: a batch is simulated at scale 1, as it is")
        return self

    def prompts(self) -> list[Tokens]:
        """The prompts of the batch."""
        return list(self.given)


def _own_tokens(prompts: list[Tokens]) -> Ints:
    """(n,) tokens of each prompt that no earlier one in depth-first order begins with.

    At least 1: the last token of a prompt is always computed, for its logits.
    """
    own = np.array([prompt.size for prompt in prompts], dtype=np.int64)
    order = PrefixTree.build(prompts).leaf_requests.tolist()
    for before, request in itertools.pairwise(order):
        one, other = prompts[before], prompts[request]
        both = min(one.size, other.size)
        differ = np.flatnonzero(one[:both] != other[:both])
        own[request] -= int(differ[0]) if differ.size else both
    return np.maximum(own, 1)
