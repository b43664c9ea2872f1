"""Requests of which the token ids are known, and prompts that do not fit.

pytest test/answering/test_known_prompts.py
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
from both_ways import GOOD, OUTCOMES, Way
from scripted import ScriptedEngine
from tokenizer_side import URLS, TokenizerSide

from sglang.srt.blendserve.answering import line_answers, loop
from sglang.srt.blendserve.answering.conversion import RequestConversion
from sglang.srt.blendserve.answering.known_prompts import KnownChat
from sglang.srt.blendserve.answering.line_source import FileOrder, SizedLine
from sglang.srt.blendserve.batch_file.types import BatchLine

pytestmark = pytest.mark.anyio

TEXT = "Long enough to be taken for a prompt, which a marker of some parser never is. "
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": TEXT}]}
KNOWN = np.asarray([5, 6, 7], dtype=np.int32)


@pytest.fixture
def conversion(side: TokenizerSide) -> RequestConversion:
    return side.executor._conversion


def converted(conversion: RequestConversion, body: dict[str, Any], prompts: Any = None) -> Any:
    """What the engine would get."""
    [url] = [url for name, url in URLS.items() if name in body]
    line = BatchLine(line=7, custom_id="a", method="POST", url=url, body=body)
    return conversion.convert(line, "rid", prompts).internal


def known_chat(conversion: RequestConversion) -> KnownChat:
    """What takes chats whose ids are known."""
    assert conversion._known_chat is not None
    return conversion._known_chat


def test_known_ids_take_the_place_of_texts(conversion: RequestConversion) -> None:
    ids = KNOWN.tolist()
    for body, prompts, wanted in (
        (CHAT, [KNOWN], ids),
        ({"prompt": TEXT}, [KNOWN], ids),
        ({"prompt": "short"}, [KNOWN], ids),
        ({"prompt": ["short"]}, [KNOWN], [ids]),
        ({"prompt": ["short", TEXT]}, [KNOWN, KNOWN[:1]], [ids, ids[:1]]),
    ):
        found = converted(conversion, body, prompts)
        assert (found.text, found.input_ids) == (None, wanted), body


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        [KNOWN, KNOWN],
        [KNOWN[:0]],
        [KNOWN.astype(np.int64)],
        [KNOWN.reshape(1, 3)],
        [[5, 6, 7]],
        [None],
        7,
    ],
)
@pytest.mark.parametrize("body", [CHAT, {"prompt": TEXT}])
def test_prompts_that_do_not_fit_count_as_not_known(
    conversion: RequestConversion, body: dict[str, Any], prompts: Any
) -> None:
    plain, found = converted(conversion, body), converted(conversion, body, prompts)
    assert (found.text, found.input_ids) == (plain.text, plain.input_ids)
    assert found.text or len(found.input_ids) > 3


def test_ids_of_the_line_itself_stay(conversion: RequestConversion) -> None:
    for body in ({**CHAT, "input_ids": [8, 9]}, {"prompt": [8, 9]}):
        assert converted(conversion, body, [KNOWN]).input_ids == [8, 9]
    assert converted(conversion, {"input": TEXT}, [KNOWN]).text == TEXT


def test_ids_that_go_elsewhere_are_made_anew(
    conversion: RequestConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a handler of another release, which tokenizes something else beside the prompt."""
    handler: Any = known_chat(conversion).handler
    convert = handler._convert_to_internal_request
    plain = converted(conversion, CHAT)
    looked_into = []

    def odd(request: Any, raw_request: None = None) -> Any:
        marker = handler.tokenizer_manager.tokenizer.encode(TEXT)
        looked_into.append(list(marker))
        internal, request = convert(request, raw_request)
        internal.sampling_params["stop_token_ids"] = marker
        return internal, request

    monkeypatch.setattr(handler, "_convert_to_internal_request", odd)
    found = converted(conversion, CHAT, [KNOWN])
    assert (found.input_ids, found.sampling_params) == (plain.input_ids, plain.sampling_params)
    assert looked_into == [KNOWN.tolist()]


def test_a_failure_on_the_way_without_tokenizing_is_none_of_the_line(
    conversion: RequestConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: Any, raw_request: None = None) -> Any:
        raise ArithmeticError("ours")

    handler: Any = known_chat(conversion).handler
    monkeypatch.setattr(handler, "_convert_to_internal_request", fails)
    plain = converted(conversion, CHAT).input_ids
    assert converted(conversion, CHAT, [KNOWN]).input_ids == plain


def test_only_the_one_conversion_sees_its_ids(
    side: TokenizerSide, conversion: RequestConversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = side.manager.tokenizer
    handler: Any = known_chat(conversion).handler
    all_in, may_go = Barrier(3), Event()

    def waits(request: Any) -> None:
        all_in.wait(60)
        assert may_go.wait(60)

    monkeypatch.setattr(handler, "_validate_request", waits)
    plain = converted(conversion, CHAT).input_ids
    several = [np.asarray([number, 1], dtype=np.int32) for number in (7, 8)]
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(converted, conversion, CHAT, [ids]) for ids in several]
        all_in.wait(60)  # both hand out ids now, and neither has been converted
        try:
            assert converted(conversion, CHAT).input_ids == plain
            own = handler.tokenizer_manager.tokenizer
            assert own.encode(TEXT) == tokenizer.encode(TEXT) != []
        finally:
            may_go.set()
        assert [one.result().input_ids for one in found] == [ids.tolist() for ids in several]
    assert own.encode(TEXT) == tokenizer.encode(TEXT)
    # SGLang 0.5.23 tokenizes long prompts more slowly where it finds this replaced.
    assert "encode" not in vars(tokenizer)


def test_a_tokenizer_that_cannot_be_copied_tokenizes(
    side: TokenizerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = side.executor._conversion
    conversion = RequestConversion(served._manager, served._templates)
    monkeypatch.setattr(type(side.manager.tokenizer), "__copy__", lambda _: 1 / 0, raising=False)
    plain = converted(conversion, CHAT)
    assert converted(conversion, CHAT, [KNOWN]).input_ids == plain.input_ids


class _Prompts:
    """Gives each line of a source prompts; None for one, and fails for some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        plain = FileOrder.next_lines

        def next_lines(source: FileOrder) -> list[SizedLine]:
            return [
                one._replace(prompts=lambda one=one: self.of(one))  # type: ignore[misc]
                for one in plain(source)
            ]

        monkeypatch.setattr(FileOrder, "next_lines", next_lines)

    def of(self, sized: SizedLine) -> Any:
        name = sized.line.custom_id or ""
        self.asked.append(name)
        if name in GOOD[8:]:
            raise LookupError(name)
        return None if name == GOOD[1] else [name]


async def test_the_engine_gets_what_a_line_knows_of_its_prompts(
    way: Way, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = _Prompts(monkeypatch)
    engine = ScriptedEngine(refused=frozenset({"refused"}))
    with caplog.at_level(logging.ERROR):
        await way.answer(engine)
    assert await way.outcomes() == OUTCOMES
    wanted: dict[str, Any] = {name: [[name]] for name in [*GOOD, "refused"]}
    wanted |= {name: [None] for name in (GOOD[1], *GOOD[8:])}
    assert engine.prompts == wanted
    assert sorted(prompts.asked) == sorted(wanted)
    said = [one for one in caplog.records if "made again" in one.getMessage()]
    assert len(said) == 1


async def test_a_second_try_has_the_same_prompts(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_answers, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(loop, "DOUBT_SECONDS", 0.05)
    prompts = _Prompts(monkeypatch)
    engine = ScriptedEngine(refused=frozenset({"refused"}))

    async def aborts_once(line: BatchLine) -> None:
        if line.custom_id == GOOD[2] and engine.executed[GOOD[2]] < 2:
            raise asyncio.CancelledError

    engine.script = aborts_once
    await way.answer(engine)
    assert engine.prompts[GOOD[2]] == [[GOOD[2]]] * 2
    assert prompts.asked.count(GOOD[2]) == 1


async def test_lines_have_no_prompts_by_default(way: Way) -> None:
    engine = ScriptedEngine(refused=frozenset({"refused"}))
    await way.answer(engine)
    assert set(map(str, engine.prompts.values())) == {"[None]"}
