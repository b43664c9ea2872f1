"""The tokens of requests with images, videos and recordings, by the model's own processor."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang.srt.blendserve.answering.media import inline_local
from sglang.srt.blendserve.answering.media_rules import MediaRules
from sglang.srt.blendserve.pool.pool_request import Tokens

logger = logging.getLogger(__name__)

_MEDIA_SECONDS = 20.0
"""Processor time that the media of lines that are rendered together may take; the media of the
others are guessed. A worker that takes three times as long is ended (`workers`)."""

_FIRST_STAND_IN = 1 << 30
"""Token ids from here on, below 2^31, stand for images, videos and recordings."""


class MediaTokens:
    """Counts the tokens of requests with media, within bounds of time."""

    def __init__(self, manager: Any, rules: MediaRules) -> None:
        """Count by the processor of a tokenizer manager of SGLang's, which may have none.

        Args:
            rules: which media lines may have.
        """
        self._manager, self._rules = manager, rules
        self._processor: Any = manager.mm_processor
        self._runner: asyncio.Runner | None = None
        self._until = math.inf
        _stay_on_the_cpu(self._processor)

    def begin(self) -> None:
        """Begin with lines that are rendered together, whose media have 20 seconds."""
        self._until = time.process_time() + _MEDIA_SECONDS

    def count(self, internal: Any) -> tuple[list[int], Tokens] | None:
        """Return the token ids of a request's one prompt, and the same with ids that stand for
        each medium's content.

        None: of a request with several prompts, or with media that are to be fetched or that the
        processor fails over, and where media have taken so long that others would wait.

        Raises:
            RequestRefused: media are not allowed, cannot be read, or are too large.
        """
        several = isinstance(internal.text, list)
        if self._processor is None or several or time.process_time() > self._until:
            return None
        if getattr(internal, "input_embeds", None) is not None:
            return None
        if not inline_local(internal, self._rules):
            return None
        self._runner = self._runner or asyncio.Runner()
        try:
            processed = self._runner.run(self._processed(internal))
            ids = list(processed.input_ids)
            return ids, _with_stand_ins(ids, processed.mm_items)
        except Exception as error:  # of any kind, also of a decoder that is not installed here
            logger.info("a line's images are not counted beforehand: %r", error)
            return None

    async def _processed(self, internal: Any) -> Any:
        """Return what the multimodal processor makes of a request, as the tokenizer manager has it
        do in the engine."""
        processor = self._processor
        for name in ("image_data", "video_data", "audio_data"):
            value = getattr(internal, name, None)
            if value is not None and not isinstance(value, list):
                setattr(internal, name, [value])
        given = internal.text if internal.text else internal.input_ids
        if getattr(processor, "prefer_tokenized_input", False) and isinstance(given, str):
            given = (await self._manager._tokenize_texts(given))[0]
        return await processor.process_mm_data_async(
            image_data=internal.image_data,
            audio_data=internal.audio_data,
            input_text=given,
            request_obj=internal,
            max_req_input_len=self._manager.context_len,
        )


def _stay_on_the_cpu(processor: Any) -> None:
    """Keep a multimodal processor off the GPU, whose memory is the engine's."""
    for one in (processor, getattr(processor, "inner", None)):  # LLaVA's has another inside
        if one is not None and hasattr(one, "_fast_image_processor_device"):
            one._fast_image_processor_device = lambda _: "cpu"


def _with_stand_ins(ids: list[int], items: Sequence[Any]) -> Tokens:
    """Return token ids, in which each medium's places have an id that stands for its content.

    SGLang takes a hash of it, of 64 bits for some; here it is one above all vocabularies.
    """
    tokens = np.asarray(ids, dtype=np.int32)
    for item in items:
        item.set_pad_value()
        for first, last in item.offsets or ():
            tokens[first : last + 1] = _FIRST_STAND_IN + item.pad_value % _FIRST_STAND_IN
    return tokens
