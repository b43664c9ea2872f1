"""Lines answered twice, the second time with the token ids of their prompts; a process each.

    python known_prompts_run.py order.json result.json

``order``: {"way": "engine" or "side", "model": folder, "flags" or "settings", "lines": [[url,
body], ...], "prompts": [[ids, ...], ...]}. The result has one entry a line: {"plain", "known"}, and
in each "status", "body", "tokenized" (texts that the tokenizer was asked for, long enough to
be a prompt) and "sent" (what goes to the scheduler; only of "side", which has none).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from prompts_run import batch_lines

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.executor import Executor
from sglang.srt.blendserve.answering.known_prompts import LEAST_CHARACTERS
from sglang.srt.blendserve.batch_file.types import BatchLine


def count_texts(tokenizer: Any) -> list[str]:
    """Return a list that texts are added to as any tokenizer of this class gets them."""
    texts: list[str] = []
    kind = type(tokenizer)
    plain = kind._encode_plus  # behind both `encode` and `__call__`

    def encode_plus(self: Any, text: Any, *arguments: Any, **options: Any) -> Any:
        texts.extend([text] if isinstance(text, str) else text)
        return plain(self, text, *arguments, **options)

    kind._encode_plus = encode_plus
    return texts


def members(value: Any) -> dict[str, Any]:
    """The fields of one of SGLang's objects, of which the releases have several kinds."""
    names = getattr(value, "__struct_fields__", None) or vars(value)
    return {name: getattr(value, name) for name in names}


def shown(sent: Any) -> dict[str, Any]:
    """What goes to the scheduler as text, but for times and random ids."""
    found = {name: value for name, value in members(sent).items() if "time" not in name}
    del found["rid"]
    found["sampling_params"] = members(found["sampling_params"])
    found["input_ids"] = list(found["input_ids"])
    return {name: repr(value) for name, value in found.items()}


async def answer_all(
    order: dict[str, Any], executor: Executor, texts: list[str], sent: list[Any]
) -> list[dict[str, Any]]:
    """Answer each line without and with its prompts, if it has any."""

    async def answer(line: BatchLine, prompts: Any) -> dict[str, Any]:
        texts.clear()
        sent.clear()
        rid = job_ids.make_rid("a" * 32, 0, line.line - 1)
        response = (await executor.execute(line, rid, prompts)).response
        body = {name: value for name, value in response.body.items() if name != "created"}
        return {
            "status": response.status_code,
            "body": body,
            "tokenized": [text for text in texts if len(text) >= LEAST_CHARACTERS],
            "sent": [shown(one) for one in sent],
        }

    found = []
    for line, given in zip(batch_lines(order), order["prompts"], strict=True):
        prompts = [np.asarray(ids, dtype=np.int32) for ids in given]
        plain = await answer(line, None)
        found.append({"plain": plain, "known": await answer(line, prompts)})
    return found


def by_engine(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Have a real engine answer."""
    from sglang.srt.entrypoints.engine import Engine

    from sglang.srt.blendserve.requests.engine_settings import engine_settings

    engine = Engine(server_args=engine_settings(order["model"], order["flags"]))
    try:
        executor = Executor(engine.tokenizer_manager, engine.template_manager)
        texts = count_texts(engine.tokenizer_manager.tokenizer)
        answering: Coroutine[Any, Any, Any] = answer_all(order, executor, texts, [])
        return list(engine.loop.run_until_complete(answering))
    finally:
        engine.shutdown()


def by_side(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Have SGLang's tokenizer manager send each line to a scheduler that is none."""
    from tokenizer_side import tokenizer_side

    side = tokenizer_side(order["model"], **order["settings"])

    async def send_all() -> list[dict[str, Any]]:
        texts = count_texts(side.manager.tokenizer)
        found = await answer_all(order, side.executor, texts, side.sent)
        await side.close()
        return found

    return asyncio.run(send_all())


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    given_order = json.loads(source.read_text())
    ways = {"engine": by_engine, "side": by_side}
    target.write_text(json.dumps(ways[given_order["way"]](given_order)))
