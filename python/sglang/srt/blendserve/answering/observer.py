"""Sees every request that a handler sends to the engine, and what the engine says of it.

SGLang's OpenAI handlers return OpenAI's answer, which leaves out what a batch must know: cached
tokens, retractions, the prompt's token ids. `ObservedTokenizerManager` stands between a handler
and SGLang's tokenizer manager and notes them for the line that is being executed.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.media import inline
from sglang.srt.blendserve.answering.media_rules import MediaRules
from sglang.srt.blendserve.answering.other_endpoints import scored
from sglang.srt.blendserve.answering.request_guard import check_token_ids

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
    from sglang.srt.managers.tokenizer_manager import TokenizerManager


T = TypeVar("T")

_LONG_TEXT = 1 << 16
"""Texts of so many characters are tokenized in a thread: that takes tens of milliseconds."""


@dataclass(slots=True)
class Observation:
    """What one line cost. A line has several prompts where ``prompt`` or ``input`` is an array.

    Attributes:
        prompt_tokens: tokens of its prompts, each prompt once whatever ``n`` is.
        completion_tokens: tokens generated, over all answers.
        cached_tokens: those of ``prompt_tokens`` found in the prefix cache. 0 for a prompt with
            ``n`` > 1: SGLang does not tell what the pass that fills the cache for its n answers
            had found there, so this is a lower bound.
        retractions: times that a sequence was thrown out of the KV cache and started over.
        aborted: why the engine gave a sequence up, None if it did not.
        max_tokens: most tokens an answer may have, None if only the context limits it.
        known_length: whether an answer has ``max_tokens`` tokens exactly (``ignore_eos``).
        namespace: prompts of different namespaces share no prefix (``cache_salt``, LoRA adapter).
        prompts: token ids of each prompt, int32, shape (tokens,); empty unless they are kept.
        output_lengths: generated tokens of each answer; answers to one prompt stand together.
        rid: the request id of those that SGLang gives none; ``asked``: how many there were.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    retractions: int = 0
    aborted: str | None = None
    max_tokens: int | None = None
    known_length: bool = False
    namespace: str = ""
    prompts: list[NDArray[np.int32]] = field(default_factory=list)
    output_lengths: list[int] = field(default_factory=list)
    rid: str | None = None
    asked: int = 0


_current: ContextVar[Observation] = ContextVar("observation")


def _number_texts(request: EmbeddingReqInput) -> None:
    """Give each of several texts an id of its own, as SGLang does for generation by itself."""
    inputs = request.input_ids if request.text is None else request.text
    several = isinstance(inputs, list) and inputs and isinstance(inputs[0], str | list)
    if several and isinstance(request.rid, str):
        request.rid = [f"{request.rid}_{index}" for index in range(len(inputs))]


def observe(rid: str) -> Observation:
    """Start to observe the calling task's requests; return what will be filled in.

    ``rid``: the id of requests that have none of their own.
    """
    observation = Observation(rid=rid)
    _current.set(observation)
    return observation


class ObservedTokenizerManager:
    """A tokenizer manager that notes each request in the calling task's `Observation`.

    Everything else is the wrapped manager's own. Only requests that do not stream.
    """

    tokenizer: Any
    """The wrapped manager's, unless the handlers are given another one."""

    def __init__(self, inner: TokenizerManager, *, keep_prompts: bool) -> None:
        self._inner = inner
        self._keep_prompts = keep_prompts
        self._media_rules = MediaRules.of(getattr(inner, "server_args", None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def generate_request(
        self, request: GenerateReqInput | EmbeddingReqInput, raw_request: None = None
    ) -> AsyncIterator[Any]:
        """Yield the engine's one answer, as `TokenizerManager.generate_request` does.

        Raises:
            ValueError: the request is not valid, or would end the scheduler.
            HTTPException: status 503, the engine gave the request up or did not take it. An answer
                to one that still waited lacks what SGLang's handlers read of every answer.
        """
        from fastapi import HTTPException
        from sglang.srt.managers.io_struct import GenerateReqInput

        observation = _current.get()
        if request.contains_mm_input():
            await inline(request, self._media_rules)
        choices = 1
        if request.rid is None:  # a handler may ask for one thing after the other
            asked, observation.asked = observation.asked, observation.asked + 1
            request.rid = f"{observation.rid}_{asked}" if asked else observation.rid
        if isinstance(request, GenerateReqInput):
            params = request.sampling_params
            choices = params.get("n") or 1
            observation.max_tokens = params.get("max_new_tokens")
            observation.known_length = bool(params.get("ignore_eos") and not params.get("stop"))
            # SGLang 0.5.17 puts the salt into the key, 0.5.23 keeps it apart.
            salt = getattr(request, "cache_salt", None)
            keys = (request.lora_path, request.extra_key, salt)
            observation.namespace = " ".join(str(key) for key in keys if key)
            await self._compact_prompts(request, observation)
        else:
            _number_texts(request)
        answers = self._inner.generate_request(request, raw_request)
        try:
            # A request that does not stream has one; running to the end closes the generator.
            [answer] = [out async for out in answers]
        except HTTPException as refused:
            if refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # a full queue, for one
                observation.aborted = str(refused.detail)
            raise
        _note(observation, answer if isinstance(answer, list) else [answer], choices)
        if observation.aborted is not None:
            raise HTTPException(503, observation.aborted)
        yield answer

    async def score_request(self, *arguments: Any, **options: Any) -> Any:
        """As SGLang's; its requests come this way, too."""
        return await scored(self, self._inner, "score_request", *arguments, **options)

    async def score_prompts(self, *arguments: Any, **options: Any) -> Any:
        """As SGLang's; its requests come this way, too."""
        return await scored(self, self._inner, "score_prompts", *arguments, **options)

    async def _compact_prompts(self, request: GenerateReqInput, observation: Observation) -> None:
        """Check the prompts' token ids, keep them if asked to, and make them small.

        A list of Python integers takes 36 bytes a token for as long as the request waits, an
        array of int32 takes 4; with tens of thousands of requests waiting, memory goes there.
        """
        if request.contains_mm_input() or request.input_embeds is not None:
            return  # the multimodal processor makes the ids
        if request.input_ids is None:
            if self._inner.tokenizer is None or not request.text:
                return
            request.input_ids = await self._tokenize(request.text)
            request.text = None
        single = not request.input_ids or isinstance(request.input_ids[0], int)
        vocab_size = self._inner.model_config.vocab_size
        prompts = [
            check_token_ids(ids, vocab_size)
            for ids in ([request.input_ids] if single else request.input_ids)
        ]
        if self._keep_prompts:
            observation.prompts.extend(prompts)
        if single and (request.sampling_params.get("n") or 1) == 1:
            # Several prompts and n > 1 stay lists, because SGLang tells them apart by that.
            request.input_ids = array("i", prompts[0].tobytes())

    async def _tokenize(self, text: str | list[str]) -> Any:
        """Return the token ids of one or several texts; a long one does not hold up the loop."""
        tokenizing = self._inner._tokenize_texts(text)
        size = len(text) if isinstance(text, str) else sum(map(len, text))
        batches = getattr(self._inner, "async_dynamic_batch_tokenizer", None) is not None
        if size < _LONG_TEXT or batches:
            return (await tokenizing)[0]
        return (await asyncio.to_thread(_finish, tokenizing))[0]


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that awaits nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    work.close()
    raise RuntimeError("the tokenizer awaits something")


def _note(observation: Observation, answers: list[dict[str, Any]], choices: int) -> None:
    """Add the engine's answers, ``choices`` to each prompt, to the observation."""
    for index, answer in enumerate(answers):
        meta = answer["meta_info"]
        generated = meta.get("completion_tokens", 0)
        observation.completion_tokens += generated
        observation.output_lengths.append(generated)
        observation.retractions += meta.get("num_retractions", 0)
        if index % choices == 0:
            observation.prompt_tokens += meta.get("prompt_tokens", 0)
            observation.cached_tokens += meta.get("cached_tokens", 0) if choices == 1 else 0
        reason = meta.get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "abort":
            observation.aborted = reason.get("message") or "The engine aborted the request."
