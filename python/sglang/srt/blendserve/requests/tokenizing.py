"""Turn a batch file into token ids without starting an engine, with the model's own tokenizer.

Chat lines go through the model's chat template as SGLang's handlers do it; completion and
embedding lines are tokenized as they stand. One line may be several sequences (``n``, or several
prompts). Only text can be counted: a line with images, audio or video is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint, ErrorCode, LineError

if TYPE_CHECKING:
    from collections.abc import Callable

_LINES_AT_ONCE = 512
"""Lines tokenized in one call, and reported to ``advance`` together."""
_COMPLETIONS_DEFAULT = 16
"""``max_tokens`` of /v1/completions where a line has none, as OpenAI and SGLang have it."""

_Prompt = str | list[int]
"""Text still to be tokenized, or token ids as they were given."""


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


def load_tokenizer(model_path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of ``model_path``, a Hugging Face folder or name."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)


def tokenize_batch(
    lines: Iterable[BatchLine | LineError],
    tokenizer: Any,
    context_length: int = 0,
    advance: Callable[[int], object] = lambda _: None,
) -> TokenizedBatch:
    """Tokenize the lines of a batch file.

    A line whose prompt leaves no room for output in ``context_length`` tokens (0: no limit) is
    refused, as the engine would. ``advance`` hears of each group of lines done.
    """
    batch = TokenizedBatch()
    source = iter(lines)
    while group := list(islice(source, _LINES_AT_ONCE)):
        _tokenize_group(group, tokenizer, context_length, batch)
        advance(len(group))
    return batch


def _tokenize_group(
    group: list[BatchLine | LineError], tokenizer: Any, context_length: int, out: TokenizedBatch
) -> None:
    """Append the sequences of ``group``; tokenizing many texts in one call uses all cores."""
    found: list[tuple[BatchLine, list[_Prompt]]] = []
    for line in group:
        if isinstance(line, LineError):
            out.refused.append(line)
            continue
        try:
            found.append((line, _prompts(line, tokenizer)))
        except _Uncountable as error:
            out.refused.append(_refusal(line, str(error), error.param))
    encoded = iter(_encode(found, tokenizer))
    for line, given in found:
        prompts = [
            np.asarray(next(encoded) if isinstance(prompt, str) else prompt, dtype=np.int32)
            for prompt in given
        ]
        longest = max((p.size for p in prompts), default=0)
        if 0 < context_length <= longest:
            message = (
                f"the prompt has {longest} tokens, but the model's context is "
                f"{context_length} tokens, output included; shorten it."
            )
            out.refused.append(_refusal(line, message, "body"))
            continue
        out.custom_ids.append(line.custom_id)
        for prompt in prompts:
            for _ in range(line.body.get("n") or 1):
                out.prompts.append(prompt)
                out.line.append(len(out.custom_ids) - 1)
                out.max_tokens.append(_max_tokens(line))
                out.exact.append(bool(line.body.get("ignore_eos")))


def _refusal(line: BatchLine, message: str, param: str) -> LineError:
    return LineError(
        code=ErrorCode.INVALID_VALUE,
        message=f"Line {line.line}: {message}",
        param=param,
        line=line.line,
        custom_id=line.custom_id,
    )


class _Uncountable(Exception):
    """A line's tokens cannot be counted here; ``param`` is the field at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def _encode(found: list[tuple[BatchLine, list[_Prompt]]], tokenizer: Any) -> list[list[int]]:
    """Token ids of the texts among the prompts of ``found``, in order."""
    texts = [(line, p) for line, prompts in found for p in prompts if isinstance(p, str)]
    ids: list[list[int]] = [[]] * len(texts)
    for chat in (True, False):
        places = [i for i, (line, _) in enumerate(texts) if (line.url == Endpoint.CHAT) is chat]
        if not places:
            continue
        # A chat template writes the special tokens itself.
        encoded = tokenizer([texts[i][1] for i in places], add_special_tokens=not chat)
        for place, tokens in zip(places, encoded["input_ids"], strict=True):
            ids[place] = tokens
    return ids


def _prompts(line: BatchLine, tokenizer: Any) -> list[_Prompt]:
    """The prompts of a line, one or more."""
    if line.url == Endpoint.CHAT:
        return [_render_chat(line.body, tokenizer)]
    name = "input" if line.url == Endpoint.EMBEDDINGS else "prompt"
    given = line.body[name]
    prompts = [given] if isinstance(given, str) or _is_token_ids(given) else given
    for prompt in prompts:
        if not isinstance(prompt, str) and not _is_token_ids(prompt):
            raise _Uncountable(
                f"{name} must be a string, an array of token ids, or an array of these.",
                f"body.{name}",
            )
    return list(prompts)


def _is_token_ids(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 31 for v in value)
    )


def _render_chat(body: dict[str, Any], tokenizer: Any) -> str:
    """The text that the model's chat template makes of a line's messages."""
    messages = [_text_message(message) for message in body["messages"]]
    options = body.get("chat_template_kwargs")
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tools=body.get("tools"),
                tokenize=False,
                add_generation_prompt=True,
                **(options if isinstance(options, dict) else {}),
            )
        )
    except Exception as error:  # templates are programs of the model's and raise what they like
        raise _Uncountable(
            f"the model's chat template refuses these messages: {error}", "body.messages"
        ) from error


def _text_message(message: object) -> dict[str, Any]:
    """A message with its content as one text."""
    if not isinstance(message, dict):
        raise _Uncountable("each message must be an object.", "body.messages")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _Uncountable(
                "only text can be planned; this message has other content.", "body.messages"
            )
        parts.append(str(part.get("text", "")))
    return {**message, "content": "\n".join(parts)}


def _max_tokens(line: BatchLine) -> int | None:
    """The cap a line puts on its output."""
    if line.url == Endpoint.EMBEDDINGS:
        return 0
    for name in ("max_completion_tokens", "max_tokens"):
        value = line.body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return _COMPLETIONS_DEFAULT if line.url == Endpoint.COMPLETIONS else None
