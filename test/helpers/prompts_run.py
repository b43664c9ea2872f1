"""What lines are to an engine, or to `EnginePrompts` without one; a process each.

    python prompts_run.py order.json result.json

``order``: {"way": "engine" or "store" or "side", "model": folder, "flags": [...], "lines": [[url,
body], ...]}. The result has one entry a line: {"status", "prompt_tokens", "ids"} as the engine
reports them, or {"refused", "prompts"}. "side" is SGLang's tokenizer manager without its scheduler.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.batch_file.types import BatchLine, Endpoint


def batch_lines(order: dict[str, Any]) -> list[BatchLine]:
    """The lines of an order."""
    return [
        BatchLine(line=i + 1, custom_id=str(i), method="POST", url=Endpoint(url), body=body)
        for i, (url, body) in enumerate(order["lines"])
    ]


def by_engine(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Have a real engine answer each line with a token."""
    from sglang.srt.entrypoints.engine import Engine

    from sglang.srt.blendserve.answering.executor import Executor
    from sglang.srt.blendserve.requests.engine_settings import engine_settings

    engine = Engine(server_args=engine_settings(order["model"], order["flags"]))
    executor = Executor(engine.tokenizer_manager, engine.template_manager)
    found = []
    try:
        for line in batch_lines(order):
            if line.url is not Endpoint.RESPONSES:  # which have another name for it
                line.body["max_tokens"] = 1
            # 0.5.17 knows only the first, and no ids of completions.
            line.body.update(return_prompt_token_ids=True, return_token_ids=True)
            rid = job_ids.make_rid("a" * 32, 0, line.line - 1)
            response = engine.loop.run_until_complete(executor.execute(line, rid)).response
            body = response.body
            choices = body.get("choices") or [{}]
            found.append({
                "status": response.status_code,
                "message": (body.get("error") or {}).get("message"),
                "prompt_tokens": prompt_tokens(body.get("usage", {})),
                "ids": choices[0].get("prompt_token_ids"),
            })  # fmt: skip
    finally:
        engine.shutdown()
    return found


def prompt_tokens(usage: dict[str, Any]) -> int | None:
    """The tokens of a prompt, by whatever name an endpoint has for them."""
    return usage.get("prompt_tokens", usage.get("input_tokens"))


def by_store(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Render the lines, all together and each alone."""
    from sglang.srt.blendserve.answering.request_refused import RequestRefused
    from sglang.srt.blendserve.requests.engine_prompts import EnginePrompts

    prompts = EnginePrompts.of(order["model"], order["flags"])
    lines = batch_lines(order)
    found = []
    for line, together in zip(lines, prompts.render_all(lines), strict=True):
        [alone] = prompts.render_all([line])
        assert shown(alone) == shown(together), line
        if isinstance(together, RequestRefused):
            found.append({"refused": str(together)})
        else:
            found.append({"prompts": shown(together)})
    return found


def shown(result: Any) -> Any:
    """The result for a line as JSON has it."""
    if isinstance(result, Exception):
        return str(result)
    return [{**prompt._asdict(), "tokens": prompt.tokens.tolist()} for prompt in result]


def by_side(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Have SGLang's tokenizer manager send each line to a scheduler that is none."""
    from tokenizer_side import tokenizer_side

    side = tokenizer_side(order["model"], **order["settings"])

    async def send(line: BatchLine) -> dict[str, Any]:
        response = (await side.execute(line.body)).response
        ids = [list(sent.input_ids) for sent in side.sent]
        return {"status": response.status_code, "ids": ids}

    async def send_all() -> list[dict[str, Any]]:
        found = [await send(line) for line in batch_lines(order)]
        await side.close()
        return found

    return asyncio.run(send_all())


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    given = json.loads(source.read_text())
    ways = {"engine": by_engine, "store": by_store, "side": by_side}
    target.write_text(json.dumps(ways[given["way"]](given)))
