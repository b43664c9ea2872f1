"""The prompts of batch lines as the engine would see them, without an engine.

A line goes through SGLang's own handlers and its own tokenizer manager, of which only what talks to
other processes is left out, so its token ids, its cap and its refusals are those of the engine.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.answering.conversion import RequestConversion
from sglang.srt.blendserve.answering.request_guard import check_token_ids
from sglang.srt.blendserve.answering.request_refused import RequestRefused
from sglang.srt.blendserve.batch_file.types import BatchLine
from sglang.srt.blendserve.requests.encoding import BatchEncoder, EncodedLater
from sglang.srt.blendserve.requests.engine_settings import engine_settings
from sglang.srt.blendserve.requests.media_tokens import MediaTokens

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
"""Guessed, for the text of prompts whose tokens are not known."""

_MEDIA_TOKENS = 576
"""Guessed tokens of an image that is to be fetched, as of one image in LLaVA; unproven."""

Tokens = NDArray[np.int32]
_NONE: Tokens = np.zeros(0, dtype=np.int32)


class Prompt(NamedTuple):
    """One prompt of a line, of which there are several where ``prompt`` or ``input`` is an array.

    Attributes:
        tokens: (length,) token ids; none where they are not known before the engine has the line.
            Images, videos and recordings have those by which the prefix cache tells them apart.
        length: tokens; estimated where ``tokens`` are not known.
        max_tokens: most tokens of an answer, None if only the context limits it; 0 for embeddings.
        known_length: whether an answer has ``max_tokens`` tokens exactly (``ignore_eos``).
        namespace: prompts of different namespaces share no prefix: LoRA adapter, ``extra_key`` and
            ``cache_salt``.
        choices: answers to it (``n``).
        exact: whether ``tokens`` are what the engine computes, and may be given to it.
    """

    tokens: Tokens
    length: int
    max_tokens: int | None
    known_length: bool
    namespace: str
    choices: int
    exact: bool


class _Rendered(NamedTuple):
    """A line on its way: what the handler made of it, and its prompts' ids or texts."""

    internal: Any
    prompts: list[Any]


class EnginePrompts:
    """What turns lines into `Prompt`s. One a process: SGLang keeps its settings in globals.

    Attributes:
        tokenizer: SGLang's.
        context_length: most tokens of a prompt and its answer.
    """

    def __init__(self, server_args: ServerArgs) -> None:
        """Load tokenizer and templates; takes seconds.

        Args:
            server_args: the engine's, resolved.

        Raises:
            Exception: SGLang cannot load them.
        """
        from sglang.srt.entrypoints.engine import init_tokenizer_manager

        self._server_args = server_args
        self._publish()
        unused: Any = None
        made = init_tokenizer_manager(server_args, unused, _tokenizer_manager_class())
        self._manager: Any = made[0]
        self._conversion = RequestConversion(self._manager, made[1])
        self.tokenizer: Any = self._manager.tokenizer
        self.context_length = int(self._manager.context_len)
        self._encoder: BatchEncoder | None = None
        self._media = MediaTokens(self._manager, self._conversion.media_rules)
        # A multimodal handler decodes what it has tokenized, so there is nothing to put off.
        fast = getattr(self.tokenizer, "is_fast", False)
        if fast and not self._manager.model_config.is_multimodal:
            self._encoder = BatchEncoder(self.tokenizer)

    @classmethod
    def of(cls, model_path: str, flags: Sequence[str] = ()) -> EnginePrompts:
        """Return those of a model under SGLang's command line ``flags``; asked again, the same.

        Raises:
            Exception: SGLang does not take the flags, or cannot load the model's tokenizer.
        """
        key = (model_path, *flags)
        if key not in _MADE:
            _MADE[key] = cls(engine_settings(model_path, flags))
        made = _MADE[key]
        made._publish()
        return made

    def _publish(self) -> None:
        """Make the settings those that SGLang's functions read in this process."""
        from sglang.srt.blendserve.runtime.compat.server_args import release

        release.publish_for_tokenizer(self._server_args)

    def render(self, line: BatchLine) -> list[Prompt]:
        """Return the prompts of a line.

        Raises:
            RequestRefused: the engine would refuse it, for this reason.
        """
        [found] = self.render_all([line])
        if isinstance(found, RequestRefused):
            raise found
        return found

    def render_all(self, lines: Iterable[BatchLine]) -> list[list[Prompt] | RequestRefused]:
        """Return the prompts of each line, or why the engine would refuse it.

        What fails for any other reason, and would be an error in the engine, has an estimated
        length, and so has what is to be fetched.
        """
        done: list[list[Prompt] | RequestRefused | _Rendered] = []
        self._media.begin()
        for line in lines:
            try:
                done.append(self._begin(line))
            except (RequestRefused, ValueError) as error:
                done.append(_refused(error))
            except Exception as error:  # a template's own: the engine gets the line and says it
                logger.info("line %s is not known beforehand: %r", line.line, error)
                done.append([_unknown(len(str(line.body)), _NO_LIMITS)])
        begun = [one for one in done if isinstance(one, _Rendered)]
        self._tokenize(begun)
        results: list[list[Prompt] | RequestRefused] = []
        for one in done:
            if not isinstance(one, _Rendered):
                results.append(one)
                continue
            try:
                results.append(self._finish(one))
            except (RequestRefused, ValueError) as error:
                results.append(_refused(error))
            except Exception as error:  # a tokenizer's own: the engine gets the line and says it
                logger.info("a line's tokens are not known beforehand: %r", error)
                results.append([_unknown(0, _NO_LIMITS)])
        return results

    def _begin(self, line: BatchLine) -> list[Prompt] | _Rendered:
        """Render a line; what it gives is to be tokenized yet."""
        internal = self._conversion.convert(line, "prepared").internal
        media = _count_media(internal)
        if media and (found := self._with_media(internal)) is not None:
            return found
        if getattr(internal, "is_cross_encoder_request", False):  # pairs of texts
            lengths = [sum(map(len, pair)) for pair in internal.text]
            return [_unknown(length, _limits(internal.sampling_params)) for length in lengths]
        if media or getattr(internal, "input_embeds", None) is not None or self._always_processes():
            texts = [internal.text] if isinstance(internal.text, str) else internal.text or []
            characters = sum(map(len, filter(None, texts)))
            characters += _CHARACTERS_A_TOKEN * _MEDIA_TOKENS * media
            return [_unknown(characters, _limits(internal.sampling_params))]
        given = internal.input_ids if internal.text is None else internal.text
        several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
        return _Rendered(internal, list(given) if several else [given])

    def _with_media(self, internal: Any) -> list[Prompt] | None:
        """Return the prompt of a request with media; None where its tokens cannot be counted.

        Raises:
            RequestRefused, ValueError: the engine would refuse the line.
        """
        counted = self._media.count(internal)
        if counted is None:
            return None
        ids, tokens = counted
        one = copy.copy(internal)
        one.text, one.input_ids = None, ids
        preferred = self._manager.preferred_sampling_params or {}
        one.sampling_params = {**preferred, **(internal.sampling_params or {})}
        self._manager._validate_one_request(one, ids)  # may shorten both
        limits = _limits(one.sampling_params)
        tokens = tokens[: len(ids)]
        return [Prompt(tokens, tokens.size, *limits[:2], _namespace(internal, 0), limits[2], False)]

    def _always_processes(self) -> bool:
        """Whether the multimodal processor has its say in texts as well."""
        architectures = self._manager.model_config.hf_config.architectures or ()
        return "MossVLForConditionalGeneration" in architectures

    def _tokenize(self, rendered: list[_Rendered]) -> None:
        """Tokenize all texts together; where that fails, each stays and fails alone."""
        prompts = [(one.prompts, i) for one in rendered for i in range(len(one.prompts))]
        if self._encoder is not None:
            self._encoder.encode(p[i] for p, i in prompts if isinstance(p[i], EncodedLater))
        texts = [(p, i) for p, i in prompts if isinstance(p[i], str)]
        if not texts:
            return
        try:
            found = self._ids([p[i] for p, i in texts])
        except Exception:  # whatever one of them raises it raises again alone, in `_finish`
            return
        for (place, index), ids in zip(texts, found, strict=True):
            place[index] = ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of texts, by SGLang's own function."""
        found: list[list[int]] = _result(self._manager._tokenize_texts(texts))[0]
        return found

    def _finish(self, rendered: _Rendered) -> list[Prompt]:
        """Check tokenized prompts as SGLang does.

        Raises:
            RequestRefused, ValueError: the engine would refuse the line.
        """
        internal, vocab_size = rendered.internal, self._manager.model_config.vocab_size
        prompts = []
        for index, given in enumerate(rendered.prompts):
            ids = self._ids([given])[0] if isinstance(given, str) else list(given)
            tokens = _checked(ids, vocab_size)
            one = copy.copy(internal)
            one.text, one.input_ids = None, ids
            labels = getattr(internal, "token_ids_logprob", None)
            if labels and isinstance(labels[0], list):  # of scores: each prompt has its own
                one.token_ids_logprob = labels[index]
            preferred = self._manager.preferred_sampling_params or {}
            one.sampling_params = {**preferred, **(internal.sampling_params or {})}
            self._manager._validate_one_request(one, ids)  # may shorten both
            limits = _limits(one.sampling_params)
            tokens = tokens[: len(ids)]
            namespace = _namespace(internal, index)
            prompts.append(Prompt(tokens, tokens.size, *limits[:2], namespace, limits[2], True))
        return prompts


_MADE: dict[tuple[str, ...], EnginePrompts] = {}
"""What `EnginePrompts.of` has made in this process."""


def _checked(ids: list[int], vocab_size: int) -> Tokens:
    """Return token ids as an array.

    Raises:
        RequestRefused: there are none, or the model does not know one.
    """
    try:
        tokens = np.asarray(ids, dtype=np.int32)
        if ids and int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size:
            return tokens
    except (OverflowError, ValueError, TypeError):
        pass
    return check_token_ids(ids, vocab_size)


class _Limits(NamedTuple):
    most: int | None
    known: bool
    choices: int


_NO_LIMITS = _Limits(None, False, 1)


def _unknown(characters: int, limits: _Limits) -> Prompt:
    """Return what stands for a prompt that only the engine can tokenize."""
    length = max(characters // _CHARACTERS_A_TOKEN, 1)
    return Prompt(_NONE, length, limits.most, limits.known, "", limits.choices, False)


def _limits(params: dict[str, Any] | None) -> _Limits:
    """Return cap, whether it is reached for sure, and number of answers; embeddings have none."""
    if not params:
        return _Limits(0, True, 1)
    known = bool(params.get("ignore_eos") and not params.get("stop"))
    return _Limits(params.get("max_new_tokens"), known, params.get("n") or 1)


def _namespace(internal: Any, index: int) -> str:
    """Return the namespace of one of a request's prompts."""
    # SGLang 0.5.17 puts the salt into the key, 0.5.23 keeps it apart; embeddings have neither.
    given = (getattr(internal, name, None) for name in ("lora_path", "extra_key", "cache_salt"))
    keys = [(one[index] if isinstance(one, list) else one) or "" for one in given]
    return "\0".join(keys) if any(keys) else ""


def _count_media(internal: Any) -> int:
    """Return how many images, videos and recordings a request has."""
    if not internal.contains_mm_input():
        return 0
    given = (getattr(internal, f"{kind}_data", None) for kind in ("image", "video", "audio"))
    return sum(len(one) if isinstance(one, list) else 1 for one in given if one) or 1


def _refused(error: Exception) -> RequestRefused:
    return error if isinstance(error, RequestRefused) else RequestRefused(str(error))


def _result(work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that awaits nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise RuntimeError("the tokenizer awaits something")


def _tokenizer_manager_class() -> Any:
    """Return SGLang's tokenizer manager without sockets, servers, watchdogs and files."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    class EnginelessManager(TokenizerManager):  # type: ignore[misc, unused-ignore]
        def init_ipc_channels(self, *_: Any, **__: Any) -> None: ...

        def init_request_logging_and_dumping(self, *_: Any, **__: Any) -> None: ...

        def init_disaggregation(self, *_: Any, **__: Any) -> None: ...

        def init_metric_collector_watchdog(self, *_: Any, **__: Any) -> None: ...

        def init_request_dispatcher(self, *_: Any, **__: Any) -> None: ...

        def init_positional_embeds_transport(self, *_: Any, **__: Any) -> None: ...

    return EnginelessManager
