"""The sequences of a batch file as token ids in memory, without an engine, as the engine has them.

One line may be several sequences (``n``, or several prompts). Only what can be counted beforehand
is: a line whose images are to be fetched is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import BatchLine, ErrorCode, LineError
from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts, Prompt

_LINES_AT_ONCE = 512
"""Lines tokenized in one call, and reported to ``advance`` together."""


@dataclass(slots=True)
class TokenizedBatch:
    """The sequences of a batch file; the lists have one entry a sequence unless they say so."""

    prompts: list[NDArray[np.int32]] = field(default_factory=list)
    line: list[int] = field(default_factory=list)
    """Which entry of ``custom_ids`` the sequence comes from."""
    max_tokens: list[int | None] = field(default_factory=list)
    """The line's cap on output tokens; None where it has none; 0 for embeddings."""
    exact: list[bool] = field(default_factory=list)
    """Whether the output is exactly ``max_tokens`` long (``ignore_eos``)."""
    custom_ids: list[str] = field(default_factory=list)
    """One entry a line."""
    refused: list[LineError] = field(default_factory=list)
    """Lines that are not planned, with the reason."""


def tokenize_batch(
    lines: Iterable[BatchLine | LineError],
    prompts: EnginePrompts,
    advance: Callable[[int], object] = lambda _: None,
) -> TokenizedBatch:
    """Tokenize the lines of a batch file.

    A line that the engine would refuse is refused. ``advance`` hears of each group of lines done.
    """
    batch = TokenizedBatch()
    source = iter(lines)
    while group := list(islice(source, _LINES_AT_ONCE)):
        rendered = iter(prompts.render_all(one for one in group if isinstance(one, BatchLine)))
        for line in group:
            if isinstance(line, LineError):
                batch.refused.append(line)
            else:
                _add(batch, line, next(rendered))
        advance(len(group))
    return batch


def _add(batch: TokenizedBatch, line: BatchLine, found: list[Prompt] | RequestRefused) -> None:
    if isinstance(found, RequestRefused):
        batch.refused.append(refusal(line, found))
        return
    if not all(prompt.tokens.size for prompt in found):
        unknown = RequestRefused("its tokens cannot be counted before the engine has it.", "body")
        batch.refused.append(refusal(line, unknown))
        return
    batch.custom_ids.append(line.custom_id)
    for prompt in found:
        for _ in range(prompt.choices):
            batch.prompts.append(prompt.tokens)
            batch.line.append(len(batch.custom_ids) - 1)
            batch.max_tokens.append(prompt.max_tokens)
            batch.exact.append(prompt.known_length and prompt.max_tokens != 0)


def refusal(line: BatchLine, refused: RequestRefused) -> LineError:
    """Return why the engine would refuse a line, in the form of a line's error."""
    return LineError(
        code=ErrorCode.INVALID_VALUE,
        message=f"Line {line.line}: {refused}",
        param=refused.param,
        line=line.line,
        custom_id=line.custom_id,
    )
