"""A batch line as SGLang's own OpenAI handlers hand it to the engine: checked and rendered.

`RequestConversion` is the one way from a line to an engine's request, for `Executor`, which then
has it answered, and for those who only want to know its tokens (`requests/engine_prompts.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from sglang.srt.blendserve.answering.known_prompts import KnownChat, id_lists, replace_texts
from sglang.srt.blendserve.answering.media import check_media
from sglang.srt.blendserve.answering.media_rules import MediaRules
from sglang.srt.blendserve.answering.other_endpoints import (
    OneGoHandler,
    answer_rerankings,
    answer_responses,
    answer_scores,
)
from sglang.srt.blendserve.answering.request_body import check_body, request_body
from sglang.srt.blendserve.answering.request_guard import check_embedding, check_request
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.answering.schema_errors import validated
from sglang.srt.blendserve.batch_file.line_check import ANY_MODEL
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint
from sglang.srt.blendserve.pool.pool_request import Tokens

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager

logger = logging.getLogger(__name__)


class Route(NamedTuple):
    """What SGLang has for an endpoint.

    Attributes:
        request_type: the schema of its bodies.
        handler: what converts and answers them.
        id_prefix: what ids of its answers begin with, None where these have no id.
    """

    request_type: type[BaseModel]
    handler: OpenAIServingBase | OneGoHandler
    id_prefix: str | None


class Converted(NamedTuple):
    """A request in the two forms that SGLang's handler takes, and the handler that answers it.

    Attributes:
        internal: the engine's form.
        request: OpenAI's form.
        handler: the one that made it, as a handler may keep something of a request.
    """

    internal: Any
    request: BaseModel
    handler: OpenAIServingBase | OneGoHandler


class RequestConversion:
    """SGLang's handlers over a tokenizer manager, built as its HTTP server builds them.

    Attributes:
        media_rules: which images, videos and recordings lines may have.
    """

    def __init__(self, tokenizer_manager: Any, template_manager: TemplateManager) -> None:
        """Build the handlers.

        Args:
            tokenizer_manager: what the handlers get as SGLang's `TokenizerManager`.
            template_manager: SGLang's chat templates.
        """
        manager: TokenizerManager = tokenizer_manager
        self._manager, self._templates = tokenizer_manager, template_manager
        self._model = manager.model_config
        self._routes: dict[Endpoint, Route] = {}
        settings = manager.server_args
        chat = self.route(Endpoint.CHAT).handler
        self.media_rules = MediaRules.of(settings)
        self._parses_tools = bool(getattr(chat, "tool_call_parser", None))
        self._own_templates = bool(getattr(settings, "trust_request_chat_template", False))

    def route(self, url: Endpoint) -> Route:
        """Return what SGLang has for an endpoint, made when it is asked for first."""
        if url not in self._routes:
            self._routes[url] = self._made(url)
        return self._routes[url]

    def _made(self, url: Endpoint) -> Route:
        from sglang.srt.entrypoints.openai import protocol as openai

        manager, templates = self._manager, self._templates
        if url is Endpoint.CHAT:
            chat = manager.serving_chat_class(manager, templates)
            return Route(openai.ChatCompletionRequest, chat, "chatcmpl-")
        if url is Endpoint.COMPLETIONS:
            from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

            completion = OpenAIServingCompletion(manager, templates)
            return Route(openai.CompletionRequest, completion, "cmpl-")
        if url is Endpoint.EMBEDDINGS:
            from sglang.srt.entrypoints.openai.serving_embedding import OpenAIServingEmbedding

            return Route(openai.EmbeddingRequest, OpenAIServingEmbedding(manager, templates), None)
        if url is Endpoint.RESPONSES:
            response = OneGoHandler(manager, answer_responses(templates))
            return Route(openai.ResponsesRequest, response, "resp_")
        if url is Endpoint.SCORE:
            return Route(openai.ScoringRequest, OneGoHandler(manager, answer_scores), "score-")
        ranking = OneGoHandler(manager, answer_rerankings(templates))
        return Route(openai.V1RerankReqInput, ranking, "rerank-")

    def convert(
        self, line: BatchLine, rid: str, prompts: Sequence[Tokens] | None = None
    ) -> Converted:
        """Check a line's request and render it.

        It takes the steps of ``OpenAIServingBase.handle_request``, which SGLang 0.5.17 takes on
        the event loop, and which tells what the user can mend by ValueError alone. Chats are
        tokenized as well; a text prompt stays one.

        Args:
            line: a valid line.
            rid: the request id.
            prompts: the token ids that the line's prompts have, in their order, int32 of shape
                (tokens,) each: nothing is tokenized then, and text prompts become ids. None: not
                known. If they do not fit the line they count as not known.

        Raises:
            RequestRefused: the user can mend it.
        """
        body = request_body(line)
        check_body(
            body, line.url, parses_tools=self._parses_tools, own_templates=self._own_templates
        )
        converted = None if prompts is None else self._with_prompts(line, rid, prompts)
        if converted is None:
            try:
                converted = self._converted(line, rid, self.route(line.url).handler)
            except _mendable() as error:
                if isinstance(error, RequestRefused):
                    raise
                self._check_media(body, line.url)
                raise _not_rendered(body, error) from error
        self._check_media(body, line.url)
        self._check(converted.internal)
        return converted

    def _converted(self, line: BatchLine, rid: str, handler: Any) -> Converted:
        """Have a handler take the line.

        Raises:
            RequestRefused: it does not fit the schema, or the handler refuses it.
            Exception: the handler fails.
        """
        schema = self.route(line.url).request_type
        request = validated(schema, lambda: self._body(line, rid))
        if refusal := handler._validate_request(request):
            raise RequestRefused(str(refusal))
        internal, request = handler._convert_to_internal_request(request, None)
        return Converted(internal, request, handler)

    def _body(self, line: BatchLine, rid: str) -> dict[str, Any]:
        body = request_body(line)
        if line.url is not Endpoint.RESPONSES:
            return {**body, "rid": rid}
        # Its handler knows the model by the name under which it is served.
        model = body.get("model", ANY_MODEL)
        if model in (ANY_MODEL, str(self._manager.model_path)):
            model = self._manager.served_model_name
        # SGLang 0.5.17 keeps all responses in memory, unless it is told not to.
        return {**body, "request_id": rid, "model": model, "store": False}

    def _with_prompts(
        self, line: BatchLine, rid: str, prompts: Sequence[Tokens]
    ) -> Converted | None:
        """Have a handler take the line without tokenizing it; None if that cannot be had."""
        known = (Endpoint.CHAT, Endpoint.COMPLETIONS)
        if line.url not in known or self._model.is_multimodal:
            return None  # tokenized in ways of their own
        try:
            ids = id_lists(prompts)
            if line.url is Endpoint.CHAT and self._known_chat is not None:
                with self._known_chat.handing_out(ids[0]) as check:
                    converted = self._converted(line, rid, self._known_chat.handler)
                    check(converted.internal)
            else:
                converted = self._converted(line, rid, self.route(line.url).handler)
            replace_texts(converted.internal, ids)
        except Exception as error:  # if it is the line's own it shows again
            logger.debug("line %s: its token ids are made anew: %r", line.line, error)
            return None
        return converted

    @cached_property
    def _known_chat(self) -> KnownChat | None:
        """What takes chats whose ids are known; None where the tokenizer is of another kind."""
        if not getattr(self._manager.tokenizer, "is_fast", False):
            return None
        try:
            return KnownChat(self._manager, self._templates)
        except Exception as error:  # of any kind, inside SGLang: knowing them is an extra
            logger.info("chats are tokenized, whether or not their ids are known: %r", error)
            return None

    def _check_media(self, body: dict[str, Any], url: Endpoint) -> None:
        check_media(body, url, self.media_rules, taken=self._model.is_multimodal)

    def _check(self, internal: Any) -> None:
        from sglang.srt.managers.io_struct import GenerateReqInput

        model = self._model
        if isinstance(internal, GenerateReqInput):
            check_request(internal, model.vocab_size, model.context_len)
        else:
            check_embedding(internal, model.vocab_size, model.hidden_size)


def _mendable() -> tuple[type[Exception], ...]:
    """Return what a request's own content makes rendering raise; the rest is ours to mend."""
    import jinja2
    from sglang.srt.entrypoints.openai.encoding_dsv32 import DS32EncodingError

    content = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
    return (*content, ArithmeticError, RecursionError, jinja2.TemplateError, DS32EncodingError)


def _not_rendered(body: dict[str, Any], error: Exception) -> RequestRefused:
    if isinstance(error, ValueError):
        return RequestRefused(str(error))
    param = "chat_template_kwargs" if body.get("chat_template_kwargs") else None
    reason = f"{type(error).__name__}: {error}"
    where = "with its chat_template_kwargs" if param else "by the model's chat template"
    return RequestRefused(f"the request cannot be rendered {where} ({reason}).", param)
