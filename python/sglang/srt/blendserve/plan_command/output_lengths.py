"""Output lengths for a plan that is made before anything has run: guessed, capped or measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.requests.measured_lengths import measured_lengths
from sglang.srt.blendserve.requests.tokenizing import TokenizedBatch


class OutputLengths(NamedTuple):
    """Predicted output tokens of each sequence, and in words where they come from."""

    tokens: NDArray[np.float64]
    source: str


def expected_lengths(batch: TokenizedBatch, choice: str, context_length: int) -> OutputLengths:
    """Output lengths as ``choice`` says: a number, ``max``, or the path of a results file.

    A number is a guess for every request, ``max`` takes each request's ``max_tokens``, a file
    with output lines has measured lengths. No length is above a request's ``max_tokens`` or what
    the context leaves, and ``ignore_eos`` makes ``max_tokens`` exact. Raises ValueError if
    ``choice`` is none of these or the file cannot be used.
    """
    prompt = np.array([p.size for p in batch.prompts], dtype=np.float64)
    room = np.maximum((context_length or np.inf) - prompt, 0)
    given = [np.inf if m is None else m for m in batch.max_tokens]
    cap = np.minimum(np.array(given, dtype=np.float64), room)
    if choice == "max":
        if not np.isfinite(cap).all():
            raise ValueError(
                "--output-tokens max: some lines have no max_tokens and the model's "
                "config names no context length; give a number instead"
            )
        return OutputLengths(cap, "each request's max_tokens (a cap, not a forecast)")
    if choice.isascii() and choice.isdigit():
        guess = np.minimum(float(choice), cap)
        tokens = np.where(np.array(batch.exact, dtype=np.bool_) & np.isfinite(cap), cap, guess)
        return OutputLengths(tokens, f"guessed: {choice} each, at most max_tokens; not measured")
    try:
        return _from_measured(batch, cap, choice)
    except ValueError as error:
        raise ValueError(
            f"--output-tokens must be a number, 'max' or the path of a results file; {error}"
        ) from error


def _from_measured(batch: TokenizedBatch, cap: NDArray[np.float64], path: str) -> OutputLengths:
    """Measured lengths by custom_id; requests that have none take the mean of the others."""
    measured = measured_lengths(batch, path)
    known = np.isfinite(measured)
    by_line = dict(zip(batch.line, measured.tolist(), strict=True))
    mean = np.nanmean([*by_line.values()])
    source = f"measured, {path}"
    if not known.all():
        source += f"; mean of these for {int((~known).sum())} requests without a result"
    return OutputLengths(np.where(known, measured, np.minimum(mean, cap)), source)
