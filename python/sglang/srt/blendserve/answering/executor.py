"""Answer one batch line with SGLang's own OpenAI handlers, as its HTTP server would.

`Executor` needs a running engine's tokenizer manager: that of `sglang.Engine` or, inside
``launch_server``, the server's. All of it runs on the event loop of that tokenizer manager.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import ObservedTokenizerManager, observe
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint

if TYPE_CHECKING:
    from sglang.srt.entrypoints.openai.serving_base import OpenAIServingBase
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager

_OVERRIDDEN = ("rid", "stream", "stream_options")
"""Fields of a body that are the batch's and not the line's to set."""


class _Route(NamedTuple):
    request_type: type[BaseModel]
    handler: OpenAIServingBase
    id_prefix: str | None


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

    async def execute(self, line: BatchLine, rid: str) -> Answer:
        """Answer ``line``; a request the endpoint refuses is an answer too, with its 4xx status.

        Cancelling the task aborts the request in the engine.

        Args:
            line: a valid line.
            rid: the request id, from `job_ids.make_rid`, by which the scheduler knows the job. A
                line with several prompts or answers is several requests ``<rid>_...`` there.
        """
        observation = observe()
        route = self._routes[line.url]
        body = {name: value for name, value in line.body.items() if name not in _OVERRIDDEN}
        try:
            request = route.request_type.model_validate({**body, "rid": rid})
        except ValidationError as error:
            return Answer(_invalid(line, rid, error), observation)
        # The raw HTTP request, of which there is none, only tells that the client is gone.
        result: Any = await route.handler.handle_request(request, None)
        if observation.aborted is not None:
            failure = {"message": observation.aborted, "type": "Aborted"}
            return Answer(_failure(line, rid, 503, failure), observation)
        if not isinstance(result, BaseModel):
            failure = orjson.loads(result.body)
            return Answer(_failure(line, rid, result.status_code, failure), observation)
        content = result.model_dump(mode="json", by_alias=True)
        if route.id_prefix is not None:
            content["id"] = route.id_prefix + blake2b(rid.encode(), digest_size=12).hexdigest()
        return Answer(Response(status_code=200, request_id=rid, body=content), observation)

    def abort(self, job: str) -> None:
        """Give up all requests of a job, wherever in the scheduler they are.

        The message goes out directly: ``TokenizerManager.abort_request`` of SGLang 0.5.17 drops
        an id that is not exactly one request's, though the scheduler aborts by prefix.
        """
        from sglang.srt.managers.io_struct import AbortReq

        self._manager._dispatch_to_scheduler(AbortReq(rid=job_ids.job_prefix(job)))


def _failure(line: BatchLine, rid: str, status: int, error: dict[str, Any]) -> Response:
    """Return the response of a request that was refused or failed: OpenAI's error object, with
    the line's number as one field more."""
    body = {
        "message": f"Line {line.line}: {error['message']}",
        "type": error.get("type") or "BadRequestError",
        "param": error.get("param"),
        "code": error.get("code") or status,
        "line": line.line,
    }
    return Response(status_code=status, request_id=rid, body={"error": body})


def _invalid(line: BatchLine, rid: str, error: ValidationError) -> Response:
    """Return the response to a body that its endpoint's own schema refuses (status 400)."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return _failure(line, rid, 400, {"message": message, "param": param or None})
