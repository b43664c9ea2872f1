"""Long lists of ``Engine.generate`` and ``async_generate``: planned as a whole before the engine.

SGLang's tokenizer manager sends all requests of a list to the scheduler at once. Here those of an
offline list longer than ``--blendserve-list-window`` are handed over by plan, each of them by
SGLang's own code, as a list of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.cost.remaining_work import RemainingWork
from sglang.srt.blendserve.dispatch.engine_settings import planner_settings
from sglang.srt.blendserve.dispatch.engine_state import TELL_SECONDS, tell_beyond
from sglang.srt.blendserve.dispatch.list_columns import Prepared
from sglang.srt.blendserve.dispatch.list_window import ListWindow
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.settings import POLICY

_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"

logger = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
_NAMESPACE = ("lora_path", "extra_key", "cache_salt")
_END_SECONDS = 2.0

_settings: WeakKeyDictionary[Any, PlannerSettings] = WeakKeyDictionary()
"""What plans are made with, by tokenizer manager: to find it out takes seconds on a CPU."""

_open: WeakSet[_OpenList] = WeakSet()


def register() -> None:
    """Hook into SGLang's tokenizer manager; in every process, because each may have one."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{_MANAGER}._handle_batch_request", _around_list, HookType.AROUND)


def aborted(manager: Any, rid: str, abort_all: bool) -> None:
    """SGLang was told to abort requests: those that wait here are not sent.

    Args:
        manager: the tokenizer manager that was told.
        rid: the beginning of their ids.
        abort_all: whether all are meant.
    """
    for one in [*_open]:
        if one.manager is manager:
            one.window.abort(partial(one.is_meant, rid, abort_all))


async def _around_list(
    original: Callable[..., AsyncGenerator[Any, None]], manager: Any, obj: Any, *given: Any
) -> AsyncIterator[Any]:
    """Around ``_handle_batch_request``: of a long offline list, only a window is sent at a time."""
    if not _is_long_list(manager, obj):
        async with aclosing(original(manager, obj, *given)) as outputs:
            async for output in outputs:
                yield output
        return
    items = ListItems(manager, obj, lambda one: original(manager, one, *given))
    async with aclosing(_answers(manager, obj, items)) as outputs:
        async for output in outputs:
            yield output


def _is_long_list(manager: Any, obj: Any) -> bool:
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.utils import get_bool_env_var

    settings = getattr(manager.server_args, "blendserve", None)
    if manager.server_args.schedule_policy != POLICY or settings is None:
        return False
    if not isinstance(obj, GenerateReqInput) or not isinstance(obj.rid, list):
        return False
    long = obj.batch_size * obj.parallel_sample_num > settings.list_window
    # With that variable SGLang holds the scheduler back until it has the whole list.
    held_back = get_bool_env_var("SGLANG_ENABLE_COLOCATED_BATCH_GEN")
    return long and not held_back and job_ids.is_sealed(obj.rid[0])


async def _answers(manager: Any, obj: Any, items: ListItems) -> AsyncGenerator[Any, None]:
    """Yield what SGLang would yield of the list."""
    mark = job_ids.parse_rid(obj.rid[0])
    assert mark is not None
    most = manager.server_args.blendserve.list_window
    window = ListWindow(items, mark.job, most, lambda: _settings_of(manager))
    this = _OpenList(manager, obj.rid, window)
    _open.add(this)
    telling = asyncio.create_task(_tell(manager, window))
    found: list[Any] = [None] * items.count
    try:
        async with aclosing(window.answers()) as answers:
            async for item, output in answers:
                if obj.stream:
                    output["index"] += item * items.choices
                    yield output
                else:
                    found[item] = output
        if not obj.stream:
            yield [one for outputs in found for one in outputs]
    finally:
        _open.discard(this)
        # Not cancelled: SGLang would wait for the scheduler's answer for ever.
        await asyncio.wait({telling}, timeout=_END_SECONDS)


async def _settings_of(manager: Any) -> PlannerSettings:
    if manager not in _settings:
        _settings[manager] = await planner_settings(manager, Stop())
    return _settings[manager]


async def _tell(manager: Any, window: ListWindow) -> None:
    """Tell the engine what is left of all lists that are open, while this one is and once more."""
    told = False
    try:
        while not await window.closed_within(TELL_SECONDS):
            if told or any(_left(manager)):
                told = True
                await tell_beyond(manager, _left(manager))
        if told:
            await tell_beyond(manager, _left(manager))
    except Exception:  # of any kind, inside SGLang: the engine goes by what it has itself
        logger.exception("The engine is not told what waits elsewhere for it")


def _left(manager: Any) -> RemainingWork:
    work = [one.window.left for one in _open if one.manager is manager]
    return RemainingWork(sum(one.compute for one in work), sum(one.memory for one in work))


@dataclass(frozen=True, eq=False)
class _OpenList:
    manager: Any
    rids: list[str]
    window: ListWindow

    def is_meant(self, rid: str, abort_all: bool, item: int) -> bool:
        """Whether an item is among those that SGLang was told to abort."""
        return abort_all or self.rids[item].startswith(rid)


class _OneOf:
    """A list of one: an item of another one, as ``_handle_batch_request`` reads it."""

    batch_size = 1

    def __init__(self, whole: Any, item: int) -> None:
        self._whole, self._item = whole, whole[item]
        self.rid = [whole.rid[item]]

    def __getitem__(self, _: int) -> Any:
        return self._item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class ListItems:
    """The items of a list call (`list_window.Items`), answered by SGLang's own code."""

    def __init__(
        self, manager: Any, whole: Any, answer: Callable[[Any], AsyncGenerator[Any, None]]
    ) -> None:
        """
        Args:
            manager: SGLang's tokenizer manager.
            whole: the list, a ``GenerateReqInput`` that is normalized.
            answer: sends a list of one, and yields what SGLang yields of it.
        """
        self.count: int = whole.batch_size
        self.choices: int = whole.parallel_sample_num
        self._manager, self._whole, self._answer = manager, whole, answer
        # By the id of the parameters, which many items share; they live as long as the list.
        self._parameters: dict[int, tuple[int, bool]] = {}

    async def prepare(self, items: Sequence[int]) -> list[Prepared]:
        """Return what is known of some items.

        Raises:
            ValueError: one cannot be answered, as SGLang would say.
        """
        requests = [self._whole[item] for item in items]
        texts = [one.text for one in requests if self._is_text(one)]
        made = iter((await self._manager._tokenize_texts(texts))[0] if texts else ())
        return [self._prepared(one, next(made) if self._is_text(one) else None) for one in requests]

    async def answer(self, item: int, prepared: Prepared | None) -> AsyncGenerator[Any, None]:
        """Have SGLang answer an item; see `list_window.Items`."""
        request = self._whole[item]
        if prepared is None:
            async for output in self._abort(request):
                yield output
            return
        given = request.input_ids
        # SGLang's own batches of texts refuse token ids beside a text.
        batches = self._manager.server_args.enable_tokenizer_batch_encode
        if prepared.exact and given is None and not batches:
            request.input_ids = prepared.prompt.tolist()
        try:
            async with aclosing(self._answer(_OneOf(self._whole, item))) as outputs:
                async for output in outputs:
                    yield output
        finally:
            request.input_ids = given

    def output_tokens(self, output: Any) -> int | None:
        """Return the tokens of the answers that end with ``output``; see `list_window.Items`."""
        infos = [one["meta_info"] for one in (output if isinstance(output, list) else [output])]
        ended = [info for info in infos if info.get("finish_reason") is not None]
        if any(info["finish_reason"].get("type") == "abort" for info in ended):
            return None
        return sum(info.get("completion_tokens", 0) for info in ended)

    def _is_text(self, request: Any) -> bool:
        """Whether its prompt is a text, and nothing else."""
        return (
            request.input_ids is None
            and request.input_embeds is None
            and isinstance(request.text, str)
            and self._manager.tokenizer is not None
            and not request.contains_mm_input()
        )

    def _prepared(self, request: Any, ids: list[int] | None) -> Prepared:
        exact = ids is not None or not (
            request.input_ids is None or request.input_embeds or request.contains_mm_input()
        )
        if exact:
            ids = [*(request.input_ids if ids is None else ids)]
            self._manager._validate_one_request(request, ids)  # which may cut them
        else:
            ids = [0] * (len(request.text or "") // _CHARACTERS_A_TOKEN)
        max_tokens, known_length = self._parameters_of(request, ids)
        return Prepared(
            np.array(ids, dtype=np.int32),
            exact,
            -1 if max_tokens is None else max_tokens,
            known_length,
            "\0".join(str(getattr(request, name, None) or "") for name in _NAMESPACE),
        )

    def _parameters_of(self, request: Any, ids: list[int]) -> tuple[int, bool]:
        key = id(request.sampling_params)
        if key not in self._parameters:
            made = self._manager._create_tokenized_object(
                request, request.text, ids, None, None, None
            ).sampling_params
            known_length = bool(made.ignore_eos and not made.stop_strs)
            self._parameters[key] = made.max_new_tokens, known_length
        return self._parameters[key]

    async def _abort(self, request: Any) -> AsyncIterator[Any]:
        """Yield what SGLang yields of a request that is aborted while it waits."""
        from sglang.srt.managers.io_struct import AbortReq

        answer = asyncio.ensure_future(anext(self._manager._wait_one_response(request, None)))
        await asyncio.sleep(0)  # it waits now, and has hold of what the next line puts away
        self._manager._handle_abort_req(AbortReq(rid=request.rid))
        output = await answer
        if not request.stream:
            yield [output] * self.choices
            return
        for choice in range(self.choices):
            yield {**output, "index": choice}
