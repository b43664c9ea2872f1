"""Answer one batch line with SGLang's own OpenAI handlers, as its HTTP server would.

`Executor` needs a running engine's tokenizer manager: that of `sglang.Engine` or, inside
``launch_server``, the server's. Requests are prepared in threads; all else runs on the event loop
of that tokenizer manager.
"""

from __future__ import annotations

import logging
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import BaseModel

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.child_ids import keep_marks
from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import (
    Observation,
    ObservedTokenizerManager,
    observe,
)
from sglang.srt.blendserve.answering.off_loop import BoundedThreads
from sglang.srt.blendserve.answering.request_body import check_body, request_body
from sglang.srt.blendserve.answering.request_guard import check_embedding, check_request
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.answering.schema_errors import validated
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager

logger = logging.getLogger(__name__)

PREPARE_SECONDS = 60.0
"""Time that a line's request may take to be checked, rendered and tokenized."""


_MOST_SAID = 2000
"""Characters of an error's message."""


class _Route(NamedTuple):
    request_type: type[BaseModel]
    handler: OpenAIServingBase
    id_prefix: str | None


class _Prepared(NamedTuple):
    """A request in the two forms that SGLang's handler takes: the engine's and OpenAI's."""

    internal: Any
    request: BaseModel


class Executor:
    """The engine behind a tokenizer manager, as `AnsweringLoop` needs it."""

    def __init__(
        self,
        tokenizer_manager: TokenizerManager,
        template_manager: TemplateManager,
        *,
        keep_prompts: bool = False,
    ) -> None:
        """Build the handlers as SGLang's HTTP server builds them.

        Args:
            tokenizer_manager, template_manager: of `sglang.Engine` or of the HTTP server.
            keep_prompts: keep each prompt's token ids in its `Observation` (4 bytes a token).
        """
        from sglang.srt.entrypoints.openai import protocol as openai
        from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
        from sglang.srt.entrypoints.openai.serving_embedding import OpenAIServingEmbedding

        keep_marks()
        self._manager = tokenizer_manager
        manager: Any = ObservedTokenizerManager(tokenizer_manager, keep_prompts=keep_prompts)
        chat = tokenizer_manager.serving_chat_class(manager, template_manager)
        completion = OpenAIServingCompletion(manager, template_manager)
        embedding = OpenAIServingEmbedding(manager, template_manager)
        self._routes = {
            Endpoint.CHAT: _Route(openai.ChatCompletionRequest, chat, "chatcmpl-"),
            Endpoint.COMPLETIONS: _Route(openai.CompletionRequest, completion, "cmpl-"),
            Endpoint.EMBEDDINGS: _Route(openai.EmbeddingRequest, embedding, None),
        }
        settings = tokenizer_manager.server_args
        self._parses_tools = bool(getattr(chat, "tool_call_parser", None))
        self._own_templates = bool(getattr(settings, "trust_request_chat_template", False))
        self._threads = BoundedThreads(PREPARE_SECONDS)

    async def execute(self, line: BatchLine, rid: str) -> Answer:
        """Answer ``line``; a request that is refused is an answer too, with its 4xx status.

        Whatever fails on the way is an answer as well: 400 where the user can mend it, else 500.
        Cancelling the task aborts the request in the engine.

        Args:
            line: a valid line.
            rid: the request id, from `job_ids.make_rid`, by which the scheduler knows the job. A
                line with several prompts or answers is several requests ``<rid>_...`` there.
        """
        from fastapi import HTTPException

        observation = observe()
        try:
            response = await self._answer(line, rid, observation)
        except RequestRefused as refused:
            response = _failure(line, rid, 400, str(refused), param=refused.param)
        except HTTPException as failed:
            response = _failure(line, rid, failed.status_code, str(failed.detail))
        except ValueError as refused:  # as SGLang's handlers take it
            response = _failure(line, rid, 400, str(refused))
        except TimeoutError:
            message = f"preparing it took more than {PREPARE_SECONDS:.0f} seconds; make it shorter."
            response = _failure(line, rid, 400, message)
        except Exception as error:
            logger.exception("line %d failed", line.line)
            message = f"an error while it was executed: {error or type(error).__name__}"
            response = _failure(line, rid, 500, message)
        return Answer(response, observation)

    async def _answer(self, line: BatchLine, rid: str, observation: Observation) -> Response:
        """Return the endpoint's response to a line.

        Raises:
            RequestRefused: the user can mend it.
            HTTPException: SGLang refuses it with this status, or has given it up.
        """
        route = self._routes[line.url]
        internal, request = await self._threads.run(lambda: self._prepare(line, rid))
        # The raw HTTP request, of which there is none, only tells that the client is gone.
        handler: Any = route.handler
        result = await handler._handle_non_streaming_request(internal, request, None)
        if observation.aborted is not None:
            return _failure(line, rid, 503, observation.aborted, kind="Aborted")
        if not isinstance(result, BaseModel):
            failure = orjson.loads(result.body)
            return _failure(line, rid, result.status_code, failure["message"], failure["type"])
        content = result.model_dump(mode="json", by_alias=True)
        # SGLang 0.5.23 puts lists there, which OpenAI's types refuse, and with them its clients.
        if isinstance(metadata := content.get("metadata"), dict):
            content["metadata"] = {k: v for k, v in metadata.items() if isinstance(v, str)}
        if route.id_prefix is not None:
            content["id"] = route.id_prefix + blake2b(rid.encode(), digest_size=12).hexdigest()
        return Response(status_code=200, request_id=rid, body=content)

    def _prepare(self, line: BatchLine, rid: str) -> _Prepared:
        """Check, render and tokenize a line's request. Runs in a thread.

        It takes the steps of ``OpenAIServingBase.handle_request``, which SGLang 0.5.17 takes on
        the event loop, and which tells what the user can mend by ValueError alone.

        Raises:
            RequestRefused: the user can mend it.
        """
        route = self._routes[line.url]
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
        return _Prepared(internal, request)

    def _check(self, internal: Any) -> None:
        from sglang.srt.managers.io_struct import GenerateReqInput

        model = self._manager.model_config
        if isinstance(internal, GenerateReqInput):
            check_request(internal, model.vocab_size, model.context_len)
        else:
            check_embedding(internal, model.vocab_size, model.hidden_size)

    def abort(self, job: str) -> None:
        """Give up all requests of a job, wherever in the scheduler they are.

        The message goes out directly: ``TokenizerManager.abort_request`` of SGLang 0.5.17 drops
        an id that is not exactly one request's, though the scheduler aborts by prefix.
        """
        from sglang.srt.managers.io_struct import AbortReq

        self._manager._dispatch_to_scheduler(AbortReq(rid=job_ids.job_prefix(job)))


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


def _failure(
    line: BatchLine,
    rid: str,
    status: int,
    message: str,
    kind: str | None = None,
    param: str | None = None,
) -> Response:
    """Return the response of a request that was refused or failed: OpenAI's error object, with
    the line's number as one field more."""
    if len(message) > _MOST_SAID:  # SGLang repeats what it was given
        message = f"{message[:_MOST_SAID]}..."
    body = {
        "message": f"Line {line.line}: {message}",
        "type": kind or ("BadRequestError" if status < 500 else "server_error"),
        "param": param,
        "code": None,  # OpenAI has a name here, or null, and clients fail at a number
        "line": line.line,
    }
    return Response(status_code=status, request_id=rid, body={"error": body})
