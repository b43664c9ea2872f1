"""Requests whose prompts' token ids are known already: rendered as ever, but not tokenized.

SGLang's chat handler renders a chat and tokenizes it in one go. `KnownChat` is such a handler over
a tokenizer of its own, a copy whose ``encode`` hands out the ids that are known. The engine's
tokenizer, and with it every online request, stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang.srt.blendserve.pool.pool_request import Tokens

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.parser.template_manager import TemplateManager

LEAST_CHARACTERS = 64
"""Shorter texts are tokenized: some of SGLang's parsers ask for the tokens of a marker, and there
is little to gain."""

_SPECIAL = "add_special_tokens"
"""The one option of ``encode`` that a prompt may be tokenized with."""

_CONTINUE = "_append_assistant_prefix_to_prompt_ids"
"""The handler's method that puts the tokens of a message to be continued behind a prompt's."""


class UnexpectedPrompts(Exception):
    """Prompts that do not fit a request, which is tokenized as if none were known."""


def id_lists(prompts: Sequence[Tokens]) -> list[list[int]]:
    """Return the token ids of prompts as SGLang takes them.

    Args:
        prompts: int32 of shape (tokens,) each.

    Raises:
        UnexpectedPrompts: there are none, one has no tokens, or they are something else.
    """
    if not prompts:
        raise UnexpectedPrompts("there are none")
    for ids in prompts:
        if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
            raise UnexpectedPrompts("they are no int32 arrays")
        if not ids.size:
            raise UnexpectedPrompts("the ids of one are not known")
    return [ids.tolist() for ids in prompts]


def replace_texts(internal: GenerateReqInput, prompts: list[list[int]]) -> None:
    """Put token ids in the place of a request's texts; a request that has ids stays as it is.

    Raises:
        UnexpectedPrompts: the request has more or fewer prompts; it stays as it is.
    """
    text, ids = internal.text, internal.input_ids
    given = ids if text is None else text
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    count = len(given) if several else 1
    if count != len(prompts):
        raise UnexpectedPrompts(f"{len(prompts)} are known, and the request has {count}")
    if text is not None:
        internal.text, internal.input_ids = None, prompts if several else prompts[0]


class KnownChat:
    """SGLang's chat handler, for chats of which the token ids are known. For any thread.

    Attributes:
        handler: converts and answers.
    """

    def __init__(self, manager: Any, template_manager: TemplateManager) -> None:
        """Build the handler.

        Args:
            manager: as SGLang's `TokenizerManager`, with a fast Hugging Face tokenizer.
            template_manager: SGLang's chat templates.
        """
        tokenizer = copy.copy(manager.tokenizer)  # what it is made of is shared
        self._encode: Callable[..., list[int]] = tokenizer.encode
        self._known: ContextVar[_Known | None] = ContextVar("known", default=None)
        tokenizer.encode = self._hand_out
        own = _OtherTokenizer(manager, tokenizer)
        self.handler: OpenAIServingBase = manager.serving_chat_class(own, template_manager)
        self._continue: Callable[..., list[int]] | None = getattr(self.handler, _CONTINUE, None)
        if self._continue is not None:
            setattr(self.handler, _CONTINUE, self._continued)

    @contextmanager
    def handing_out(self, ids: list[int]) -> Iterator[Callable[[Any], None]]:
        """Have the handler take ``ids`` for what it tokenizes meanwhile, in this thread.

        What is given is a function that raises `UnexpectedPrompts` if they are not the prompt of
        a converted request.
        """
        known = _Known(ids)
        token = self._known.set(known)
        try:
            yield known.check
        finally:
            self._known.reset(token)

    def _hand_out(self, text: Any, *arguments: Any, **options: Any) -> list[int]:
        known = self._known.get()
        plain = isinstance(text, str) and not arguments and options.keys() <= {_SPECIAL}
        if known is None or known.taken or not plain or len(text) < LEAST_CHARACTERS:
            return self._encode(text, *arguments, **options)
        known.taken = True
        return known.ids

    def _continued(self, ids: list[int], prefix: str) -> list[int]:
        known = self._known.get()
        if known is not None and ids is known.ids:
            return ids  # they end with it
        assert self._continue is not None
        return self._continue(ids, prefix)


class _Known:
    """The ids of one prompt, and whether somebody has got them."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.taken = False

    def check(self, internal: Any) -> None:
        """Raise `UnexpectedPrompts` if the ids went anywhere but to where the prompt belongs."""
        if self.taken and internal.input_ids is not self.ids:
            raise UnexpectedPrompts("the handler tokenizes something else")


class _OtherTokenizer:
    """A tokenizer manager with another tokenizer."""

    def __init__(self, inner: Any, tokenizer: Any) -> None:
        self._inner = inner
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
