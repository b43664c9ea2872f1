"""A line's body on its way to SGLang's schema: what is left out of it, and what it may not hold.

SGLang ignores fields that it does not know, and some that it knows but cannot honour. In a batch
nobody notices until all is computed, so such a line is refused.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from sglang.srt.blendserve import releases
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

_OVERRIDDEN = ("rid", "request_id", "stream", "stream_options")
"""Fields of a body that are the batch's and not the line's to set."""

_OWN_DATA = frozenset(
    ("schema", "parameters", "arguments", "chat_template_kwargs", "custom_params", "metadata")
)
"""Members that hold the user's own data, in which null has a meaning."""

_ARRAYS = frozenset(("prompt", "input", "input_ids", "stop_token_ids", "embed_overrides"))
"""Members that may be long arrays, of which each item counts."""

_ROUTER = "is set by SGLang's router and not by a batch line; leave it out."
_SESSION = "belongs to a session, and the lines of a batch have no order; leave it out."
_GUIDED = "has no effect in SGLang; use response_format, regex or ebnf."
_SEARCH = "has no effect in SGLang, which answers with text only; leave it out."
_REFUSED = {
    **dict.fromkeys(("bootstrap_host", "bootstrap_port", "bootstrap_room"), _ROUTER),
    **dict.fromkeys(("routed_dp_rank", "disagg_prefill_dp_rank", "data_parallel_rank"), _ROUTER),
    **dict.fromkeys(("session_id", "session_params"), _SESSION),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), _GUIDED),
    **dict.fromkeys(("web_search_options", "audio"), _SEARCH),
    "functions": "has no effect; use tools.",
    "function_call": "has no effect; use tool_choice.",
    "suffix": "has no effect: SGLang does not insert text. Leave it out.",
    "chat_template": "has no effect; a batch is rendered with the model's own chat template.",
}
"""Fields that would have no effect, or one that no line may have -> what to do."""

_UNPARSED = (
    "tools cannot be honoured: the engine does not parse tool calls. Start it with "
    '--tool-call-parser, leave tools out, or set tool_choice to "none".'
)

_NO_STATE = "refers to what a server has stored, and a batch stores nothing; write it out in input."
_STATEFUL = {
    "background": "has no effect: a batch is in the background. Leave it out.",
    "previous_response_id": _NO_STATE,
    "conversation": _NO_STATE,
    "prompt": _NO_STATE,
}
"""Fields of a response that no line may have -> what to do."""

_TOOLS = ("function",) if releases.supported() == "0.5.17" else ("function", "custom")
"""Kinds of tools of a response that SGLang tells the model of."""

_LENGTH = "has no effect in a response; use max_output_tokens."
_FORMAT = "has no effect in a response; use text.format."
_NOT_THERE = "has no effect in a response: SGLang has it for chats only. Leave it out."
_OF_CHATS = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "min_tokens"), _LENGTH),
    **dict.fromkeys(("response_format", "json_schema", "regex", "ebnf", "structural_tag"), _FORMAT),
    **dict.fromkeys(("seed", "logit_bias", "ignore_eos", "stop_token_ids"), _NOT_THERE),
    **dict.fromkeys(("stop_regex", "separate_reasoning", "lora_path"), _NOT_THERE),
    "messages": "has no effect in a response; use input.",
    "logprobs": 'has no effect in a response; use "include": ["message.output_text.logprobs"].',
    "reasoning_effort": "has no effect in a response; use reasoning.effort.",
}
"""Fields of chats that SGLang's schema of responses does not know -> what to do."""

_EMBEDS = ("embed_override_token_id", "query_embed_overrides", "item_embed_overrides")

_TEMPLATE_ARGUMENTS = frozenset((
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs",
    "image_prompts",
))  # fmt: skip
"""Arguments that SGLang itself gives the tokenizer's ``apply_chat_template``."""


def request_body(line: BatchLine) -> dict[str, Any]:
    """Return the body as SGLang's schema is to see it.

    Fields that are the batch's own are left out, and so are members that are null: OpenAI's schema
    allows null for nearly all, and tools that write tables as JSON put it wherever another line
    has a value. The line itself is not changed, also not by SGLang's validators.
    """
    body = {name: value for name, value in line.body.items() if name not in _OVERRIDDEN}
    return dict(_without_nulls(body))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: member if name in _ARRAYS else _copy_of(name, member)
            for name, member in value.items()
            if member is not None
        }
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _copy_of(name: str, member: Any) -> Any:
    return deepcopy(member) if name in _OWN_DATA else _without_nulls(member)


def check_body(
    body: dict[str, Any], url: Endpoint, *, parses_tools: bool, own_templates: bool
) -> None:
    """Refuse what SGLang would take without effect, and what a body may not bring along.

    Args:
        body: as `request_body` returns it.
        parses_tools: whether the engine finds tool calls in what the model writes.
        own_templates: whether a body may have a chat template of its own, which is a program.

    Raises:
        RequestRefused: says which field, and what to do.
    """
    for name, advice in _REFUSED.items():
        if body.get(name) not in (None, "", [], {}):
            raise RequestRefused(f"{name} {advice}", name)
    if body.get("modalities") not in (None, ["text"]):
        raise RequestRefused(f"modalities {_SEARCH}", "modalities")
    best_of, choices = body.get("best_of"), body.get("n", 1)
    if best_of not in (None, choices):
        message = f"best_of has no effect in SGLang: it must equal n ({choices}), or be left out."
        raise RequestRefused(message, "best_of")
    if url is Endpoint.CHAT:
        _check_chat(body, parses_tools=parses_tools, own_templates=own_templates)
    elif url is Endpoint.RESPONSES:
        _check_responses(body, parses_tools=parses_tools, own_templates=own_templates)
    elif url is Endpoint.SCORE:
        for name in _EMBEDS:
            if body.get(name) is not None:
                raise RequestRefused(f"{name} is not taken in a batch; leave it out.", name)


def _check_responses(body: dict[str, Any], *, parses_tools: bool, own_templates: bool) -> None:
    for name, advice in _STATEFUL.items():
        if body.get(name):
            raise RequestRefused(f"{name} {advice}", name)
    for name, advice in _OF_CHATS.items():
        if body.get(name) is not None:
            raise RequestRefused(f"{name} {advice}", name)
    if body.get("n", 1) != 1:
        raise RequestRefused("n has no effect in a response, which is one; leave it out.", "n")
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind not in _TOOLS:
            message = f"a batch has no tools of its own, and the type is {kind}; use functions."
            raise RequestRefused(message, f"tools.{number}.type")
    if tools and body.get("tool_choice") != "none" and not parses_tools:
        raise RequestRefused(_UNPARSED, "tools")
    _check_template_arguments(body.get("chat_template_kwargs"), own_templates)


def _check_chat(body: dict[str, Any], *, parses_tools: bool, own_templates: bool) -> None:
    if body.get("top_logprobs") and not body.get("logprobs"):
        message = "top_logprobs has no effect without logprobs: set logprobs to true."
        raise RequestRefused(message, "top_logprobs")
    if _has_tools(body) and body.get("tool_choice") != "none" and not parses_tools:
        raise RequestRefused(_UNPARSED, "tools")
    _check_template_arguments(body.get("chat_template_kwargs"), own_templates)


def _has_tools(body: dict[str, Any]) -> bool:
    """Whether a chat has tools, in the request or, as SGLang takes them too, in a message."""
    messages = body["messages"] if isinstance(body["messages"], list) else []
    in_messages = any(message.get("tools") for message in messages if isinstance(message, dict))
    return bool(body.get("tools")) or in_messages


def _check_template_arguments(arguments: Any, own_templates: bool) -> None:
    if not isinstance(arguments, dict):
        return  # for the schema to refuse
    allowed = frozenset(("chat_template",)) if own_templates else frozenset()
    for name in arguments:
        if name in _TEMPLATE_ARGUMENTS - allowed:
            param = f"chat_template_kwargs.{name}"
            own = name == "chat_template"
            advice = (
                "is a program, which a batch line may not bring along; leave it out."
                if own
                else "is set by SGLang itself; leave it out."
            )
            raise RequestRefused(f"{param} {advice}", param)
