"""Lines of each kind that makes tokens differ from a plain rendering, and some that are refused."""

from __future__ import annotations

from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
SCORE = "/v1/score"

TEMPLATE = """\
{%- if reasoning_effort is defined %}[effort {{ reasoning_effort }}]{% endif -%}
{%- if shout is defined %}[shout {{ shout }}]{% endif -%}
{%- for tool in tools or [] %}[tool {{ tool | tojson }}]{% endfor -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}[{{ message.content }}]{% endif %}
{%- for call in message.tool_calls or [] %}[call {{ call | tojson }}]{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

USER = {"role": "user", "content": "What is the weather in Zürich, and why? 1234567 " * 2}
SYSTEM = {"role": "system", "content": "You are brief. " * 6}
ASSISTANT = {"role": "assistant", "content": "The weather is quite often like this, I believe: "}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {}}},
    }
    for name in ("weather", "clock")
]
NAMED = {"type": "function", "function": {"name": "clock"}}
CALLED = [
    {"id": "a", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "CET"}'}}
]
PARTS = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
IDS = [5, 6, 7, 8, 9]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (CHAT, {"messages": [USER]}),
    "system": (CHAT, {"messages": [SYSTEM, USER]}),
    "several text parts": (CHAT, {"messages": [{"role": "user", "content": PARTS}]}),
    "tools": (CHAT, {"messages": [USER], "tools": TOOLS}),
    "tools, none to be used": (CHAT, {"messages": [USER], "tools": TOOLS, "tool_choice": "none"}),
    "a named tool": (CHAT, {"messages": [USER], "tools": TOOLS, "tool_choice": NAMED}),
    "tool calls": (
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": CALLED},
                {"role": "tool", "tool_call_id": "a", "content": PARTS},
            ]
        },
    ),
    "reasoning effort": (CHAT, {"messages": [USER], "reasoning_effort": "low"}),
    "template arguments": (CHAT, {"messages": [USER], "chat_template_kwargs": {"shout": "yes"}}),
    "effort among the arguments": (
        CHAT,
        {"messages": [USER], "chat_template_kwargs": {"reasoning_effort": "high"}},
    ),
    "last from the assistant": (CHAT, {"messages": [USER, ASSISTANT]}),
    "last continued": (CHAT, {"messages": [USER, ASSISTANT], "continue_final_message": True}),
    "long one continued": (
        CHAT,
        {
            "messages": [USER, {"role": "assistant", "content": "on and on " * 30}],
            "continue_final_message": True,
        },
    ),
    "null content": (
        CHAT,
        {"messages": [USER, {"role": "assistant", "content": None}, {**USER, "name": None}]},
    ),
    "ids for a chat": (CHAT, {"messages": [USER], "input_ids": IDS}),
    "markers in a text": (CHAT, {"messages": [{"role": "user", "content": "<|im_end|> \n x"}]}),
    "other scripts": (CHAT, {"messages": [{"role": "user", "content": "天気 🌦 ДВ\u2028\u0301é"}]}),
    "a float cap": (CHAT, {"messages": [USER], "max_tokens": 64.0}),
    "a text": (COMPLETIONS, {"prompt": "Once upon a time, far away"}),
    "a text with blanks": (COMPLETIONS, {"prompt": "  two  blanks\n\n and tabs\t"}),
    "texts": (COMPLETIONS, {"prompt": ["Once upon a time", "there was"]}),
    "ids": (COMPLETIONS, {"prompt": IDS}),
    "lists of ids": (COMPLETIONS, {"prompt": [IDS, IDS[:2]]}),
    "a response": (RESPONSES, {"input": USER["content"], "max_output_tokens": 16}),
    "a response with turns": (
        RESPONSES,
        {"input": [USER, ASSISTANT, USER], "instructions": "Be brief.", "max_output_tokens": 16},
    ),
    "scores": (
        SCORE,
        {"query": "Is it far away? ", "items": ["yes", "not at all"], "label_token_ids": IDS},
    ),
    "scores of ids": (SCORE, {"query": IDS, "items": [IDS[:2], IDS], "label_token_ids": IDS[:2]}),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "too long": (COMPLETIONS, {"prompt": [5] * 5000}),
    "no such id": (COMPLETIONS, {"prompt": [1 << 20]}),
    "no embeddings": (EMBEDDINGS, {"input": "a"}),
    "no messages": (CHAT, {"messages": []}),
    "an image": (
        CHAT,
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}],
                }
            ]
        },
    ),
}
