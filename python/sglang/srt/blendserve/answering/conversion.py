"""A batch line as SGLang's own OpenAI handlers hand it to the engine: checked and rendered.

`RequestConversion` is the one way from a line to an engine's request, for `Executor`, which then
has it answered, and for those who only want to know its tokens (`requests/engine_prompts.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from sglang.srt.blendserve.answering.request_body import check_body, request_body
from sglang.srt.blendserve.answering.request_guard import check_embedding, check_request
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.answering.schema_errors import validated
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager


class Route(NamedTuple):
    """What SGLang has for an endpoint.

    Attributes:
        request_type: the schema of its bodies.
        handler: what converts and answers them.
        id_prefix: what ids of its answers begin with, None where these have no id.
    """

    request_type: type[BaseModel]
    handler: OpenAIServingBase
    id_prefix: str | None


class Converted(NamedTuple):
    """A request in the two forms that SGLang's handler takes: the engine's and OpenAI's."""

    internal: Any
    request: BaseModel


class RequestConversion:
    """SGLang's handlers over a tokenizer manager, built as its HTTP server builds them.

    Attributes:
        routes: one for each endpoint.
    """

    def __init__(self, tokenizer_manager: Any, template_manager: TemplateManager) -> None:
        """Build the handlers.

        Args:
            tokenizer_manager: what the handlers get as SGLang's `TokenizerManager`.
            template_manager: SGLang's chat templates.
        """
        from sglang.srt.entrypoints.openai import protocol as openai
        from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
        from sglang.srt.entrypoints.openai.serving_embedding import OpenAIServingEmbedding

        manager: TokenizerManager = tokenizer_manager
        self._model = manager.model_config
        chat = manager.serving_chat_class(manager, template_manager)
        completion = OpenAIServingCompletion(manager, template_manager)
        embedding = OpenAIServingEmbedding(manager, template_manager)
        self.routes = {
            Endpoint.CHAT: Route(openai.ChatCompletionRequest, chat, "chatcmpl-"),
            Endpoint.COMPLETIONS: Route(openai.CompletionRequest, completion, "cmpl-"),
            Endpoint.EMBEDDINGS: Route(openai.EmbeddingRequest, embedding, None),
        }
        settings = manager.server_args
        self._parses_tools = bool(getattr(chat, "tool_call_parser", None))
        self._own_templates = bool(getattr(settings, "trust_request_chat_template", False))

    def convert(self, line: BatchLine, rid: str) -> Converted:
        """Check a line's request and render it.

        It takes the steps of ``OpenAIServingBase.handle_request``, which SGLang 0.5.17 takes on
        the event loop, and which tells what the user can mend by ValueError alone. Chats are
        tokenized as well; a text prompt stays one.

        Raises:
            RequestRefused: the user can mend it.
        """
        route = self.routes[line.url]
        body = request_body(line)
        check_body(
            body, line.url, parses_tools=self._parses_tools, own_templates=self._own_templates
        )
        request = validated(route.request_type, lambda: {**request_body(line), "rid": rid})
        handler: Any = route.handler
        try:
            if refusal := handler._validate_request(request):
                raise RequestRefused(str(refusal))
            internal, request = handler._convert_to_internal_request(request, None)
        except _mendable() as error:
            if isinstance(error, RequestRefused):
                raise
            raise _not_rendered(body, error) from error
        self._check(internal)
        return Converted(internal, request)

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
