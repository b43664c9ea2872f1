"""Bounds of a request: what its tensors and arithmetic hold, in SGLang 0.5.17 and 0.5.23.

SGLang lets values through that end its scheduler process, and one bad line must not take its
batch, and the server, with it. Each bound follows from where the value goes; the tests are values
just outside (test/answering/test_request_guard.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.blendserve.answering.pattern_guard import check_grammars, check_stop_regex
from sglang.srt.blendserve.answering.request_refused import RequestRefused

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

MAX_TOP_LOGPROBS = 1024
"""Most alternatives a token (``top_logprobs``, in completions ``logprobs``) may list."""

MAX_ALTERNATIVES = 1 << 22
"""Most alternatives all tokens of an answer may list; each is some hundred bytes of Python."""

USUAL_TOP_LOGPROBS = 20
"""As many as OpenAI has it are always taken, however long the answer may become."""

MAX_LOGIT_BIAS = 1e9
"""Largest absolute ``logit_bias``. It is added to a float32 logit, which is then divided by the
temperature (1e-6 at least) and by the repetition penalty."""

MAX_TEMPERATURE = 1e6
"""Logits that a grammar forbids are minus infinity; divided by an infinite float32 they are NaN."""

MIN_TOP_P = 1e-30
"""A smaller one is 0 as a float32, which no sampler takes."""

MIN_REPETITION_PENALTY = 1e-3
"""Logits are divided by it: by less, float32 overflows together with a bias and a temperature."""

MAX_STOP_TOKENS = 1024
"""``min_tokens`` forbids all stop tokens: some token must be left to be sampled."""

MAX_STOPS = 32
"""Most ``stop`` strings, as SGLang 0.5.23 has it; each is looked for in every step."""

MAX_SEQUENCES = 4096
"""Most sequences of a line, its prompts times ``n``: each is a request of its own in the engine."""

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1

_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")

_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
"""SGLang's names of parameters -> what a body calls them."""


def check_token_ids(ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """Return the token ids of one prompt; an unknown one would fail in the embedding look-up.

    A prompt without tokens is refused as SGLang refuses it where it stands alone.

    Raises:
        RequestRefused: there are none, or an id lies outside [0, vocab_size).
    """
    if not ids:
        raise RequestRefused("A prompt is empty: it has no tokens.")
    if min(ids) < 0 or max(ids) >= vocab_size:
        outside = next(token for token in ids if not 0 <= token < vocab_size)
        raise RequestRefused(
            f"Token id {outside} does not exist: the model's ids are 0 to {vocab_size - 1}."
        )
    return np.asarray(ids, dtype=np.int32)


def check_request(request: GenerateReqInput, vocab_size: int, context_length: int) -> None:
    """Check the sampling parameters and options of one request.

    Args:
        request: as SGLang's handler makes it of a body.
        vocab_size: number of token ids that the model knows.
        context_length: most tokens of a prompt and its answer.

    Raises:
        RequestRefused: a value would end or stop the scheduler; says which and what it may be.
    """
    params: dict[str, Any] = request.sampling_params or {}
    _check_types(params)
    _check_numbers(params, vocab_size)
    _check_stops(params, vocab_size)
    check_grammars({name: params.get(name) for name in _GRAMMARS})
    if params.get("min_new_tokens") and any(params.get(name) for name in _GRAMMARS):
        # Where the grammar allows the end only, min_tokens forbids it, and nothing can be sampled.
        message = "min_tokens cannot go with response_format, a grammar or tools; leave one out."
        raise RequestRefused(message, "min_tokens")
    _check_logprobs(request, params, vocab_size, context_length)
    _check_range("priority", request.priority, -_INT32_MAX, _INT32_MAX)
    start = getattr(request, "routed_experts_start_len", 0)
    _check_range("routed_experts_start_len", start, 0, context_length)
    prompts = _prompt_count(request)
    choices = params.get("n") or 1
    if (prompts or 1) * choices > MAX_SEQUENCES:
        message = f"{prompts or 1} prompts with n {choices} are more than {MAX_SEQUENCES}."
        raise RequestRefused(f"{message} Divide the line.", "n")
    for name in ("lora_path", "extra_key", "cache_salt", "custom_logit_processor"):
        _check_per_prompt(name, getattr(request, name, None), prompts)


def check_embedding(request: EmbeddingReqInput, vocab_size: int, hidden_size: int) -> None:
    """Check the prompts and options of one request for embeddings.

    Args:
        request: as SGLang's handler makes it of a body.
        vocab_size: number of token ids that the model knows.
        hidden_size: elements of an embedding that may stand in a token's place.

    Raises:
        RequestRefused: a value would end the scheduler; says which and what it may be.
    """
    prompts = _prompt_count(request)
    if (prompts or 1) > MAX_SEQUENCES:
        message = f"input has {prompts} entries, more than {MAX_SEQUENCES}. Divide the line."
        raise RequestRefused(message, "input")
    if request.input_ids:
        ids = request.input_ids
        for one in [ids] if isinstance(ids[0], int) else ids:
            check_token_ids(one, vocab_size)
    _check_range("dimensions", request.dimensions, 1, hidden_size)
    _check_range("priority", request.priority, -_INT32_MAX, _INT32_MAX)
    _check_range("embed_override_token_id", request.embed_override_token_id, 0, vocab_size - 1)
    _check_per_prompt("lora_path", request.lora_path, prompts)
    for rows in request.embed_overrides or ():
        for row in rows if rows is not None else ():
            if row.shape[-1] != hidden_size:
                message = f"embed_overrides must hold {hidden_size} numbers for each token."
                raise RequestRefused(message, "embed_overrides")


def _check_numbers(params: dict[str, Any], vocab_size: int) -> None:
    _check_range("temperature", params.get("temperature"), 0, MAX_TEMPERATURE)
    _check_range("top_p", params.get("top_p"), MIN_TOP_P, 1)
    _check_range("min_p", params.get("min_p"), 0, 1)
    _check_range("repetition_penalty", params.get("repetition_penalty"), MIN_REPETITION_PENALTY, 2)
    for name in ("frequency_penalty", "presence_penalty"):
        _check_range(name, params.get(name), -2, 2)
    # Elements of int32 tensors, and with deterministic inference of int64, for the whole batch.
    _check_range("top_k", params.get("top_k"), -1, _INT32_MAX)
    for name, least in (("max_new_tokens", 0), ("min_new_tokens", 0)):
        _check_range(_NAMES[name], params.get(name), least, _INT32_MAX)
    _check_range("seed", params.get("sampling_seed"), -_INT64_MAX, _INT64_MAX)
    for token, bias in (params.get("logit_bias") or {}).items():
        _check_range("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        if not token.isascii() or not token.isdecimal() or int(token) >= vocab_size:
            message = f"logit_bias has the key {token!r}; keys are token ids, "
            raise RequestRefused(f"{message}0 to {vocab_size - 1}.", "logit_bias")


def _check_stops(params: dict[str, Any], vocab_size: int) -> None:
    # An index into a row of vocab_size penalties when min_tokens is set.
    tokens = params.get("stop_token_ids") or ()
    for token in tokens:
        _check_range("stop_token_ids", token, 0, vocab_size - 1)
    if len(tokens) > min(MAX_STOP_TOKENS, vocab_size // 2):
        message = f"stop_token_ids has {len(tokens)} entries; at most "
        raise RequestRefused(
            f"{message}{min(MAX_STOP_TOKENS, vocab_size // 2)} are allowed.", "stop_token_ids"
        )
    for name in ("stop", "stop_regex"):
        given = params.get(name) or ()
        if not isinstance(given, str) and len(given) > MAX_STOPS:
            message = f"{name} has {len(given)} entries; at most {MAX_STOPS} are allowed."
            raise RequestRefused(message, name)
    patterns = params.get("stop_regex") or ()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        check_stop_regex(pattern)


def _check_logprobs(
    request: GenerateReqInput, params: dict[str, Any], vocab_size: int, context_length: int
) -> None:
    # torch.topk of more tokens than there are; and the answer's size grows with it.
    alternatives = request.top_logprobs_num or 0
    _check_range("top_logprobs", alternatives, 0, min(MAX_TOP_LOGPROBS, vocab_size))
    prompt_too = request.return_logprob and request.logprob_start_len == 0
    longest = params.get("max_new_tokens")
    tokens = context_length if longest is None or prompt_too else min(longest, context_length)
    tokens *= params.get("n") or 1
    if alternatives > USUAL_TOP_LOGPROBS and alternatives * tokens > MAX_ALTERNATIVES:
        most = max(MAX_ALTERNATIVES // tokens, USUAL_TOP_LOGPROBS)
        message = f"top_logprobs is {alternatives}, for up to {tokens} tokens; at most {most} can "
        message += "be kept. Ask for fewer, or lower max_tokens."
        raise RequestRefused(message, "top_logprobs")


def _prompt_count(request: GenerateReqInput | EmbeddingReqInput) -> int | None:
    """Return how many prompts an array of them has, None where there is one that stands alone."""
    given = request.input_ids if request.text is None else request.text
    if isinstance(given, list) and given and isinstance(given[0], str | list):
        return len(given)
    return None


def _check_per_prompt(name: str, value: Any, prompts: int | None) -> None:
    """Check a text that may be given for each of several prompts."""
    if not isinstance(value, list):
        return
    if prompts is None:
        raise RequestRefused(f"{name} must be a string, not an array: there is one prompt.", name)
    if len(value) != prompts:
        message = f"{name} has {len(value)} entries for {prompts} prompts; give one for each."
        raise RequestRefused(message, name)


def _check_types(params: dict[str, Any]) -> None:
    """Check that the parameters have the types that the engine's processes take for granted.

    SGLang declares them, but where its processes exchange pickles, as they do by default, nothing
    checks them; and where they do not, a scheduler that cannot read a request ends.
    """
    from sglang.srt.managers import io_struct

    for name, value in params.items():
        free = name == "custom_params" and io_struct._USE_PICKLE_IPC
        if value is None or free:
            continue
        try:
            if isinstance(value, bool | int | float):
                _check_number(name, type(value).__name__, value)
            else:
                _check_type(name, value)
        except Exception as error:  # of whatever kind: what cannot be sent must not be
            shown = _NAMES.get(name, name)
            message = f"{shown} has not the form it must have: {error}."
            raise RequestRefused(message, shown) from error


def _check_type(name: str, value: Any) -> None:
    """Raise whatever a parameter's value makes sending it raise."""
    import msgspec
    from sglang.srt.sampling.sampling_params import SamplingParams

    data = msgspec.msgpack.encode(SamplingParams(**{name: value}))
    msgspec.msgpack.decode(data, type=SamplingParams)


@lru_cache(maxsize=1024)
def _check_number(name: str, kind: str, value: float) -> None:
    """As `_check_type`; the lines of a batch have the same few numbers. What raises is not kept.

    ``kind``: 1, 1.0 and true are equal, and are not all taken.
    """
    _check_type(name, value)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise RequestRefused(f"{name} is {value}; it must lie in [{low}, {high}].", name)
