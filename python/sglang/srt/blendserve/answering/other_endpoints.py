"""Endpoints that SGLang's handlers convert and answer in one go: responses, scores, rerankings.

The handlers of chats, completions and embeddings make a request for the engine first, and answer
it then; `RequestConversion` takes these two steps apart. `OneGoHandler` makes two steps of the
others: it lets them run up to the request that they would send, and once more to the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, NoReturn

import orjson
from pydantic import BaseModel

from sglang.srt.blendserve.answering.request_refused import RequestRefused

Answering = Callable[[Any], Coroutine[Any, Any, Any]]
"""What answers a request of an endpoint: SGLang's own method."""


class OneGoHandler:
    """A handler in the form that `RequestConversion` takes, over one that does all in one go."""

    def __init__(self, manager: Any, build: Callable[[Any], Answering]) -> None:
        """Build SGLang's handler twice.

        Args:
            manager: what it gets as SGLang's `TokenizerManager`.
            build: makes the handler over a tokenizer manager, and returns its method.
        """
        self._answer = build(manager)
        self._begin = build(_ToldRequests(manager))

    def _validate_request(self, request: BaseModel) -> str | None:
        return None

    def _convert_to_internal_request(self, request: BaseModel, _: None) -> tuple[Any, BaseModel]:
        """Return the request that the handler sends to the engine first, and ``request``.

        Raises:
            RequestRefused: the handler refuses it.
            Exception: the handler fails.
        """
        rendered: list[Any] = []
        token = _rendered.set(rendered)
        beginning = self._begin(request)
        try:
            beginning.send(None)
        except _Told as told:
            told.request.rendered = rendered
            return told.request, request
        except StopIteration as end:
            _refuse(end.value)
        finally:
            _rendered.reset(token)
            beginning.close()
        raise RuntimeError("a handler waits for something before it asks the engine")

    async def _handle_non_streaming_request(
        self, internal: Any, request: BaseModel, _: None
    ) -> Any:
        """Return the handler's answer to ``request``."""
        token = _rendered.set(internal.rendered)
        try:
            answer = await self._answer(request)
        finally:
            _rendered.reset(token)
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # SGLang's handler of responses answers a cancellation, with "Client disconnected".
            raise asyncio.CancelledError
        return answer


_rendered: ContextVar[list[Any]] = ContextVar("rendered")
"""What a handler has rendered of the request at hand, so that it is not done again."""


class _Told(BaseException):
    """Ends a handler's method where it asks the engine; its own clauses let this through."""

    def __init__(self, request: Any) -> None:
        self.request = request


class _ToldRequests:
    """A tokenizer manager that gives away what it is asked, and answers nothing."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate_request(self, request: Any, _: Any = None) -> NoReturn:
        raise _Told(request)

    async def score_request(self, *arguments: Any, **options: Any) -> Any:
        """As SGLang's; its requests come this way, too."""
        return await scored(self, self._inner, "score_request", *arguments, **options)

    async def score_prompts(self, *arguments: Any, **options: Any) -> Any:
        """As SGLang's; its requests come this way, too. What is asked for is kept."""
        _rendered.get().append((arguments, options))
        return await scored(self, self._inner, "score_prompts", *arguments, **options)


async def scored(manager: Any, inner: Any, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a scoring method of SGLang's on ``manager``, which stands before ``inner``.

    Scores are made by methods of the tokenizer manager itself, which ask the engine through it.
    """
    while "_inner" in vars(inner):  # another one that stands before SGLang's
        inner = inner._inner
    return await getattr(type(inner), method)(manager, *arguments, **options)


def _refuse(answer: Any) -> NoReturn:
    """Raise what a handler says that asks the engine nothing."""
    message, param = "the request asks for nothing.", None
    status = getattr(answer, "status_code", None) or getattr(answer, "code", None)
    if isinstance(status, int) and status >= 400:
        message, param = failure_of(answer)[0], failure_of(answer)[2]
    raise RequestRefused(message, param)


def failure_of(answer: Any) -> tuple[str, str | None, str | None]:
    """Return message, type and param of an HTTP response or of an object that says what failed."""
    body = answer.model_dump() if isinstance(answer, BaseModel) else orjson.loads(answer.body)
    error = body.get("error")
    said = error if isinstance(error, dict) else body
    return str(said.get("message")), said.get("type"), said.get("param")


def answer_responses(templates: Any) -> Callable[[Any], Answering]:
    """Return what builds SGLang's handler of ``/v1/responses``, which stores nothing here."""
    from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

    class Responses(OpenAIServingResponses):  # type: ignore[misc, unused-ignore]
        async def _make_request(self, *arguments: Any, **options: Any) -> Any:
            return await _once(super()._make_request(*arguments, **options))

    def build(manager: Any) -> Answering:
        # As SGLang's own server builds it.
        handler = Responses(manager, templates, enable_prompt_tokens_details=True)
        handler.enable_response_store = False
        answer: Answering = handler.create_responses
        return answer

    return build


async def _once(rendering: Coroutine[Any, Any, Any]) -> Any:
    """Return what was rendered of the request at hand, or render it."""
    kept = _rendered.get()
    if kept:
        rendering.close()
    else:
        kept.append(await rendering)
    return kept[0]


def answer_scores(manager: Any) -> Answering:
    """Build SGLang's handler of ``/v1/score``."""
    from sglang.srt.entrypoints.openai.serving_score import OpenAIServingScore

    return _in_two_steps(OpenAIServingScore(manager))


def answer_rerankings(templates: Any) -> Callable[[Any], Answering]:
    """Return what builds SGLang's handler of ``/v1/rerank``."""
    from sglang.srt.entrypoints.openai import serving_rerank

    class Rerank(serving_rerank.OpenAIServingRerank):  # type: ignore[misc, unused-ignore]
        async def _handle_text_reranker_request(self, **given: Any) -> Any:
            kept = _rendered.get()
            if not kept:
                return await super()._handle_text_reranker_request(**given)
            # As SGLang does, without a template compiled and rendered for each document again.
            arguments, options = kept[0]
            result = await self.tokenizer_manager.score_prompts(*arguments, **options)
            scores = [serving_rerank._qwen3_rerank_score(*chances) for chances in result.scores]
            return self._build_rerank_response(scores, given["request"])

    return lambda manager: _in_two_steps(Rerank(manager, templates))


def _in_two_steps(handler: Any) -> Answering:
    async def answer(request: BaseModel) -> Any:
        if refusal := handler._validate_request(request):
            raise RequestRefused(str(refusal))
        internal, request = handler._convert_to_internal_request(request, None)
        return await handler._handle_non_streaming_request(internal, request, None)

    return answer
