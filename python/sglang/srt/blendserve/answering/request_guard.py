"""Values that SGLang 0.5.17 lets through although they end its scheduler process.

One bad line must not take its whole batch, and the server, with it. Each check names what would
happen without it; test/run/test_run.py sends such values to a real engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sglang.srt.managers.io_struct import GenerateReqInput

MAX_TOP_LOGPROBS = 1024
"""Most alternatives a token (``top_logprobs``, in completions ``logprobs``) may list."""

MAX_LOGIT_BIAS = 1e30
"""Largest absolute ``logit_bias``: it is an element of a float32 tensor."""

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1


def check_token_ids(ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """Return the token ids of one prompt; an unknown one would fail in the embedding look-up.

    A prompt without tokens is refused as SGLang refuses it where it stands alone.

    Raises:
        ValueError: there are none, or an id lies outside [0, vocab_size).
    """
    if not ids:
        raise ValueError("A prompt is empty: it has no tokens.")
    if min(ids) < 0 or max(ids) >= vocab_size:
        outside = next(token for token in ids if not 0 <= token < vocab_size)
        raise ValueError(
            f"Token id {outside} does not exist: the model's ids are 0 to {vocab_size - 1}."
        )
    return np.asarray(ids, dtype=np.int32)


def check_request(request: GenerateReqInput, vocab_size: int) -> None:
    """Check the sampling parameters and options of one request.

    Raises:
        ValueError: a value would end the scheduler; says which and what it may be.
    """
    # torch.topk of more tokens than there are; and the answer's size grows with it.
    alternatives = min(MAX_TOP_LOGPROBS, vocab_size)
    _check_range("top_logprobs", request.top_logprobs_num, 0, alternatives)
    params: dict[str, Any] = request.sampling_params or {}
    for bias in (params.get("logit_bias") or {}).values():
        _check_range("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
    # An index into a row of vocab_size penalties when min_tokens is set.
    for token in params.get("stop_token_ids") or ():
        _check_range("stop_token_ids", token, 0, vocab_size - 1)
    # Elements of tensors of int32 and, with deterministic inference, int64 for the whole batch.
    _check_range("top_k", params.get("top_k"), -1, _INT32_MAX)
    _check_range("seed", params.get("sampling_seed"), -_INT64_MAX, _INT64_MAX)
    patterns = params.get("stop_regex") or ()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"stop_regex {pattern!r} is not a regular expression: {error}"
            ) from error


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must lie in [{low}, {high}].")
