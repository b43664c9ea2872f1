"""Answer one batch line with SGLang's own OpenAI handlers, as its HTTP server would.

`Executor` needs a running engine's tokenizer manager: that of `sglang.Engine` or, inside
``launch_server``, the server's. Requests are prepared in threads; all else runs on the event loop
of that tokenizer manager.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.child_ids import keep_marks
from sglang.srt.blendserve.answering.conversion import RequestConversion
from sglang.srt.blendserve.answering.engine import Answer
from sglang.srt.blendserve.answering.observer import (
    Observation,
    ObservedTokenizerManager,
    observe,
)
from sglang.srt.blendserve.answering.off_loop import BoundedThreads
from sglang.srt.blendserve.answering.other_endpoints import failure_of
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.results import Response
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.pool.pool_request import Tokens

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager
    from sglang.srt.parser.template_manager import TemplateManager

logger = logging.getLogger(__name__)

PREPARE_SECONDS = 60.0
"""Time that a line's request may take to be checked, rendered and tokenized."""


_MOST_SAID = 2000
"""Characters of an error's message."""


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
        keep_marks()
        self._manager = tokenizer_manager
        manager = ObservedTokenizerManager(tokenizer_manager, keep_prompts=keep_prompts)
        tokenizer = getattr(tokenizer_manager, "tokenizer", None)
        model = getattr(tokenizer_manager, "model_config", None)
        if getattr(model, "is_multimodal", False) and getattr(tokenizer, "is_fast", False):
            # The multimodal processor changes how its tokenizer pads, which fails ("Already
            # borrowed") while a thread here tokenizes with the same.
            manager.tokenizer = copy.deepcopy(tokenizer)
        self._conversion = RequestConversion(manager, template_manager)
        self._threads = BoundedThreads(PREPARE_SECONDS)

    async def execute(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None = None,
        engine: int | None = None,
    ) -> Answer:
        """Answer ``line``; a request that is refused is an answer too, with its 4xx status.

        Whatever fails on the way is an answer as well: 400 where the user can mend it, else 500.
        Cancelling the task aborts the request in the engine.

        Args:
            line: a valid line.
            rid: the request id, from `job_ids.make_rid`, by which the scheduler knows the job. A
                line with several prompts or answers is several requests ``<rid>_...`` there.
            prompts: the token ids of the line's prompts, as `RequestConversion.convert` takes
                them; None: not known.
            engine: of no meaning: there is one.
        """
        from fastapi import HTTPException

        observation = observe(rid)
        try:
            response = await self._answer(line, rid, prompts, observation)
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

    async def _answer(
        self,
        line: BatchLine,
        rid: str,
        prompts: Sequence[Tokens] | None,
        observation: Observation,
    ) -> Response:
        """Return the endpoint's response to a line.

        Raises:
            RequestRefused: the user can mend it.
            HTTPException: SGLang refuses it with this status, or has given it up.
        """
        route = self._conversion.route(line.url)
        internal, request, converter = await self._threads.run(
            lambda: self._conversion.convert(line, rid, prompts)
        )
        # The raw HTTP request, of which there is none, only tells that the client is gone.
        handler: Any = converter
        result = await handler._handle_non_streaming_request(internal, request, None)
        if observation.aborted is not None:
            return _failure(line, rid, 503, observation.aborted, kind="Aborted")
        status = getattr(result, "status_code", 200)
        if status >= 400:
            message, kind, param = failure_of(result)
            return _failure(line, rid, status, message, kind, param)
        content = self._content(result, observation)
        # SGLang 0.5.23 puts lists there, which OpenAI's types refuse, and with them its clients.
        if isinstance(metadata := content.get("metadata"), dict):
            content["metadata"] = {k: v for k, v in metadata.items() if isinstance(v, str)}
        if route.id_prefix is not None:
            content["id"] = route.id_prefix + blake2b(rid.encode(), digest_size=12).hexdigest()
        return Response(status_code=200, request_id=rid, body=content)

    def _content(self, result: Any, observation: Observation) -> dict[str, Any]:
        """Return the body of an answer."""
        if isinstance(result, list):  # SGLang's answer to a reranking is an array
            found = [one.model_dump(mode="json", exclude={"meta_info"}) for one in result]
            tokens = observation.prompt_tokens
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            model = self._manager.served_model_name
            return {"object": "rerank", "model": model, "results": found, "usage": usage}
        if isinstance(result, BaseModel):
            return result.model_dump(mode="json", by_alias=True)
        content: dict[str, Any] = orjson.loads(result.body)
        return content

    def abort(self, job: str) -> None:
        """Give up all requests of a job, wherever in the scheduler they are.

        The message goes out directly: ``TokenizerManager.abort_request`` of SGLang 0.5.17 drops
        an id that is not exactly one request's, though the scheduler aborts by prefix.
        """
        from sglang.srt.managers.io_struct import AbortReq

        self._manager._dispatch_to_scheduler(AbortReq(rid=job_ids.job_prefix(job)))


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
