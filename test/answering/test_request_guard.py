"""The bounds at the engine's door, each by a value just outside what it documents.

    pytest test/answering/test_request_guard.py

No engine: what lies beyond them is not to be sent to one.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from sglang.srt.blendserve.answering import pattern_guard
from sglang.srt.blendserve.answering.pattern_guard import check_stop_regex
from sglang.srt.blendserve.answering.request_guard import (
    MAX_LOGIT_BIAS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    MIN_TOP_P,
    check_embedding,
    check_request,
    check_token_ids,
)
from sglang.srt.blendserve.answering.request_refused import RequestRefused

VOCABULARY, CONTEXT, HIDDEN = 1000, 2048, 16


def refusal(params: dict[str, Any] | None = None, **options: Any) -> RequestRefused | None:
    """Return why a request is refused, None if it is not."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    options.setdefault("input_ids", [1, 2])
    request = GenerateReqInput(sampling_params=params or {}, **options)
    try:
        check_request(request, VOCABULARY, CONTEXT)
    except RequestRefused as refused:
        return refused
    return None


BOUNDS: list[tuple[str, str, Any, Any]] = [
    # SGLang's parameter, the field, the last value inside, the first outside
    ("temperature", "temperature", MAX_TEMPERATURE, 2 * MAX_TEMPERATURE),
    ("temperature", "temperature", 0, -0.1),
    ("top_p", "top_p", 1, 1.1),
    ("top_p", "top_p", MIN_TOP_P, 0),
    ("min_p", "min_p", 1, 1.1),
    ("min_p", "min_p", 0, -0.1),
    ("top_k", "top_k", 2**31 - 1, 2**31),
    ("top_k", "top_k", -1, -2),
    ("frequency_penalty", "frequency_penalty", 2, 2.1),
    ("frequency_penalty", "frequency_penalty", -2, -2.1),
    ("presence_penalty", "presence_penalty", 2, 2.1),
    ("presence_penalty", "presence_penalty", -2, -2.1),
    ("repetition_penalty", "repetition_penalty", 2, 2.1),
    ("repetition_penalty", "repetition_penalty", MIN_REPETITION_PENALTY, 0),
    ("max_new_tokens", "max_tokens", 2**31 - 1, 2**31),
    ("max_new_tokens", "max_tokens", 0, -1),
    ("min_new_tokens", "min_tokens", 2**31 - 1, 2**31),
    ("min_new_tokens", "min_tokens", 0, -1),
    ("sampling_seed", "seed", 2**63 - 1, 2**63),
    ("sampling_seed", "seed", -(2**63) + 1, -(2**63)),
    ("logit_bias", "logit_bias", {"5": MAX_LOGIT_BIAS}, {"5": 1.1 * MAX_LOGIT_BIAS}),
    ("logit_bias", "logit_bias", {"5": -MAX_LOGIT_BIAS}, {"5": -1.1 * MAX_LOGIT_BIAS}),
    ("logit_bias", "logit_bias", {"999": 1}, {"1000": 1}),
    ("logit_bias", "logit_bias", {"0": 1}, {"-1": 1}),
    ("logit_bias", "logit_bias", {"5": 1}, {"x": 1}),
    ("stop_token_ids", "stop_token_ids", [0, 999], [1000]),
    ("stop_token_ids", "stop_token_ids", [0], [-1]),
    ("stop_token_ids", "stop_token_ids", list(range(500)), list(range(501))),
    ("stop", "stop", ["x"] * 32, ["x"] * 33),
    ("stop_regex", "stop_regex", ["x"] * 32, ["x"] * 33),
    ("regex", "regex", "(" * 64 + ")" * 64, "(" * 65 + ")" * 65),
    ("json_schema", "response_format", "[" * 64, "[" * 65),
    ("regex", "regex", "(a{100}){1000}", "(a{100}){1001}"),
    ("regex", "regex", r"\w{1,60}@\w{1,60}\.com", "((a{60}){60}){60}"),
    ("spaces_between_special_tokens", "spaces_between_special_tokens", False, "no"),
]


@pytest.mark.parametrize(("name", "param", "inside", "outside"), BOUNDS)
def test_a_parameter_is_bounded(name: str, param: str, inside: Any, outside: Any) -> None:
    assert refusal({name: inside}) is None
    refused = refusal({name: outside})
    assert refused is not None
    assert refused.param == param
    assert param in str(refused)


OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # the field, options that are taken, options that are not
    ("top_logprobs", {"top_logprobs_num": 1000}, {"top_logprobs_num": 1001}),
    ("top_logprobs", {"top_logprobs_num": 0}, {"top_logprobs_num": -1}),
    ("priority", {"priority": 2**31 - 1}, {"priority": 2**31}),
    ("routed_experts_start_len", {"routed_experts_start_len": CONTEXT},
     {"routed_experts_start_len": CONTEXT + 1}),
    ("extra_key", {"extra_key": "a"}, {"extra_key": ["a"]}),
    ("lora_path", {"lora_path": "a"}, {"lora_path": ["a"]}),
    ("lora_path", {"input_ids": [[1], [2]], "lora_path": ["a", None]},
     {"input_ids": [[1], [2]], "lora_path": ["a"]}),
    ("n", {"input_ids": [[1]] * 4096}, {"input_ids": [[1]] * 4097}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "inside", "outside"), OPTIONS)
def test_an_option_is_bounded(param: str, inside: dict[str, Any], outside: dict[str, Any]) -> None:
    assert refusal(**inside) is None
    refused = refusal(**outside)
    assert refused is not None
    assert refused.param == param


def test_sequences_are_prompts_times_answers() -> None:
    assert refusal({"n": 128}, input_ids=[[1]] * 32) is None
    refused = refusal({"n": 128}, input_ids=[[1]] * 33)
    assert str(refused) == "33 prompts with n 128 are more than 4096. Divide the line."


def test_alternatives_of_all_tokens_are_bounded() -> None:
    many: dict[str, Any] = {"top_logprobs_num": 1000, "return_logprob": True}
    assert refusal({"max_new_tokens": 100, "n": 40}, **many) is None
    refused = refusal({"max_new_tokens": 100, "n": 50}, **many)
    assert refused is not None
    assert "at most 838 can be kept" in str(refused)
    many["top_logprobs_num"] = 20  # as OpenAI has it, always
    assert refusal({"n": 128}, **many) is None


@pytest.mark.parametrize("name", ["json_schema", "regex", "ebnf", "structural_tag"])
def test_min_tokens_and_a_grammar_leave_nothing_to_sample(name: str) -> None:
    assert refusal({name: "x"}) is None
    refused = refusal({name: "x", "min_new_tokens": 1})
    assert refused is not None
    assert refused.param == "min_tokens"


def test_two_grammars_exclude_each_other() -> None:
    refused = refusal({"regex": "x", "json_schema": "{}"})
    assert str(refused) == "response_format and regex exclude each other; leave one out."


def test_a_long_grammar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_guard, "MAX_GRAMMAR_BYTES", 10)
    assert refusal({"ebnf": "é" * 5}) is None
    refused = refusal({"ebnf": "é" * 6})
    assert refused is not None
    assert refused.param == "ebnf"


PATTERNS = [
    # taken, and refused for what
    ("a" * 256, "a" * 257, "is longer than 256 bytes"),
    ("(a)", "(a", "is not a regular expression"),
    (r"\s*$", r"a*b*", "has 2 repeats without an end"),
    ("(?:ab)+", "(?:a+b)+", "without an end inside a repeat"),
    ("[ab]+", "(?:ab|c)+", "too many ways"),
    (r"(\d{1,3}\.){3}", r"(?:a{1,9}){9}", "too many ways"),
    ("(ab|c){3}", "(ab|c){10}", "too many ways"),
    ("a?b?c?", "(?:a?){10}", "too many ways"),
    ("a{1,1000}", "a{1,1001}", "too many ways"),
    (r"(?<=a)b", r"(a)\1", "refers back to a group"),
]


@pytest.mark.parametrize(("taken", "refused", "reason"), PATTERNS)
def test_a_stop_regex_takes_no_more_time_than_its_length(
    taken: str, refused: str, reason: str
) -> None:
    check_stop_regex(taken)
    with pytest.raises(RequestRefused, match=re.escape(reason)) as caught:
        check_stop_regex(refused)
    assert caught.value.param == "stop_regex"


def test_the_bounds_hold_in_the_arithmetic() -> None:
    """What the sampler does with the extremes of all bounds together stays a number."""
    logits = torch.tensor([40.0, -40.0], dtype=torch.float32)
    bias = torch.tensor([MAX_LOGIT_BIAS, -MAX_LOGIT_BIAS], dtype=torch.float32)
    penalised = (logits + bias) / torch.tensor(MIN_REPETITION_PENALTY, dtype=torch.float32)
    for temperature in (1e-6, MAX_TEMPERATURE):
        scaled = penalised / torch.tensor(temperature, dtype=torch.float32)
        assert torch.isfinite(scaled).all()
    forbidden = torch.tensor([0.0, -torch.inf]) / torch.tensor(MAX_TEMPERATURE)
    assert torch.softmax(forbidden, dim=-1).tolist() == [1, 0]
    assert torch.tensor(MIN_TOP_P, dtype=torch.float32) > 0


def test_token_ids_lie_in_the_vocabulary() -> None:
    assert check_token_ids([0, 999], VOCABULARY).dtype == np.int32
    for ids in ([1000], [-1], []):
        with pytest.raises(RequestRefused):
            check_token_ids(ids, VOCABULARY)


@pytest.mark.parametrize(
    ("param", "outside"),
    [
        (None, {"input_ids": [1000]}),
        (None, {"input_ids": [[1], [-1]]}),
        ("input", {"text": ["a"] * 4097}),
        ("dimensions", {"text": "a", "dimensions": HIDDEN + 1}),
        ("dimensions", {"text": "a", "dimensions": 0}),
        ("embed_override_token_id", {"text": "a", "embed_override_token_id": 1000}),
        ("embed_overrides", {"text": "a", "embed_overrides": [[torch.zeros(HIDDEN + 1)]]}),
        ("priority", {"text": "a", "priority": -(2**31)}),
    ],
)
def test_requests_for_embeddings_are_bounded(param: str | None, outside: dict[str, Any]) -> None:
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    inside = {"text": "a", "dimensions": HIDDEN, "embed_overrides": [[torch.zeros(HIDDEN)]]}
    check_embedding(EmbeddingReqInput(**inside), VOCABULARY, HIDDEN)
    with pytest.raises(RequestRefused) as refused:
        check_embedding(EmbeddingReqInput(**outside), VOCABULARY, HIDDEN)
    assert refused.value.param == param
