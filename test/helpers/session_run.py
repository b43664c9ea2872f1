"""One engine through a working day: all kinds of requests, jobs that are aborted, clients that go.

    python session_run.py ORDER.json RESULT.json

ORDER: {"engine": flags, "parts": names of the functions below}. Used by test_sessions.py, with
the policy and without it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

POOL = 1500
"""KV slots of the small engines."""


def prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(1000, 40_000) for _ in range(tokens)]


def rid(job: str, total: int, index: int) -> str:
    """As `job_ids.make_rid`, without the package where it must not be there, in stock runs."""
    if os.environ.get("SGLANG_PLUGINS") != "none":
        from sglang.srt.blendserve.job_ids import make_rid

        return make_rid(job, total, index)
    return f"blendserve-{job}-{total}-{index:08d}"


def greedy(tokens: int, **more: Any) -> dict[str, Any]:
    return {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **more}


async def one(
    engine: Any, rid: str, ids: list[int], parameters: dict[str, Any], **more: Any
) -> Any:
    """The answer, or the error's text."""
    try:
        return await engine.async_generate(
            input_ids=ids, sampling_params=parameters, rid=rid, **more
        )
    except ValueError as error:
        return {"output_ids": [], "error": str(error), "meta_info": {}}


async def kinds(engine: Any) -> dict[str, Any]:
    """Plain, log probability and grammar-constrained requests in one job."""
    rng = random.Random(1)
    shared = prompt(rng, 40)
    calls = []
    for number in range(24):
        ids = [*shared, *prompt(rng, 4)] if number % 2 else prompt(rng, 30)
        more: dict[str, Any] = {}
        parameters = greedy(12)
        if number % 4 == 1:
            more = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
        if number % 4 == 2:
            parameters = {"temperature": 0, "max_new_tokens": 12, "regex": "[0-9]{3}-[a-f]{4}"}
        calls.append(one(engine, rid("kinds", 24, number), ids, parameters, **more))
    answers = await asyncio.gather(*calls)
    return {
        "ids": [a["output_ids"] for a in answers],
        "texts": [a["text"] for a in answers],
        "logprobs": [
            [round(value, 3) for value, *_ in a["meta_info"].get("output_token_logprobs", [])]
            for a in answers
        ],
        "prompt_logprobs": [len(a["meta_info"].get("input_token_logprobs", [])) for a in answers],
    }


async def streams(engine: Any) -> dict[str, Any]:
    """Streamed answers: how many pieces, and the last one."""
    rng = random.Random(2)

    async def stream(number: int) -> tuple[int, list[int]]:
        pieces, ids = 0, []
        parts = await engine.async_generate(
            input_ids=prompt(rng, 20),
            sampling_params=greedy(10),
            rid=rid("streams", 4, number),
            stream=True,
        )
        async for part in parts:
            pieces, ids = pieces + 1, part["output_ids"]
        return pieces, ids

    done = await asyncio.gather(*(stream(number) for number in range(4)))
    return {"pieces": [pieces for pieces, _ in done], "ids": [ids for _, ids in done]}


async def aborted_job(engine: Any) -> dict[str, Any]:
    """Two jobs at once, one of which is aborted when the other's first answer is there."""
    from sglang.srt.managers.io_struct import AbortReq

    rng = random.Random(3)
    stays = [
        asyncio.ensure_future(one(engine, rid("stays", 12, n), prompt(rng, 20), greedy(5 + 3 * n)))
        for n in range(12)
    ]
    goes = [
        asyncio.ensure_future(one(engine, rid("goes", 30, n), prompt(rng, 20), greedy(300)))
        for n in range(30)
    ]
    await asyncio.wait(stays, return_when=asyncio.FIRST_COMPLETED)
    # As the batch service does: SGLang's own method drops prefixes of ids.
    engine.tokenizer_manager._dispatch_to_scheduler(AbortReq(rid="blendserve-goes-"))
    kept, gone = await asyncio.gather(*stays), await asyncio.gather(*goes)
    reasons = [(a["meta_info"].get("finish_reason") or {}).get("type") for a in gone]
    return {"kept": [a["output_ids"] for a in kept], "gone": reasons}


async def lost_clients(engine: Any) -> dict[str, Any]:
    """Clients that have closed their connection while their requests run or wait."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    rng = random.Random(4)

    async def call(number: int) -> str:
        request = GenerateReqInput(
            input_ids=prompt(rng, 20),
            sampling_params=greedy(1200),
            rid=rid("lost", 12, number),
        )
        try:
            async for _ in engine.tokenizer_manager.generate_request(request, Gone()):
                pass
        except ValueError as error:
            return str(error)
        return ""

    return {"errors": await asyncio.gather(*(call(number) for number in range(12)))}


async def too_large(engine: Any) -> dict[str, Any]:
    """A prompt larger than the whole KV cache among others."""
    rng = random.Random(5)
    sizes = [20, 20, 2 * POOL, 20]
    answers = await asyncio.gather(
        *(
            one(engine, rid("large", 4, n), prompt(rng, size), greedy(6))
            for n, size in enumerate(sizes)
        )
    )
    return {
        "ids": [a["output_ids"] for a in answers],
        "errors": [
            a.get("error") or (a["meta_info"].get("finish_reason") or {}).get("message", "")
            for a in answers
        ],
    }


async def hungry(engine: Any) -> dict[str, Any]:
    """Short prompts whose outputs, of lengths that nobody is told, are many times the KV cache."""
    rng = random.Random(6)
    lengths = [rng.choice([20, 120, 180]) for _ in range(40)]
    answers = await asyncio.gather(
        *(
            one(
                engine,
                rid("hungry", 40, n),
                prompt(rng, 6),
                {"temperature": 0, "max_new_tokens": 200, "regex": f"[0-9]{{{length}}}"},
            )
            for n, length in enumerate(lengths)
        )
    )
    return {
        "ids": [a["output_ids"] for a in answers],
        "retractions": sum(a["meta_info"]["num_retractions"] for a in answers),
    }


async def lists(engine: Any) -> dict[str, Any]:
    """List calls of all kinds, two of which hold an item that is wrong, and one that is aborted."""
    rng = random.Random(7)
    words = ["red", "green", "blue", "one", "two", "three"]
    shared = " ".join(rng.choices(words, k=40))
    texts = [
        " ".join([shared] * (number % 2) + rng.choices(words, k=6 + number)) for number in range(30)
    ]
    parameters = [greedy(4 + number % 5 * 6) for number in range(30)]
    for number in range(0, 30, 7):
        parameters[number] = {"temperature": 0, "max_new_tokens": 9, "regex": "[0-9]{3}-[a-f]{4}"}
    plain = await engine.async_generate(texts, parameters)
    again = await engine.async_generate(
        input_ids=[answer["output_ids"] for answer in plain], sampling_params=greedy(5)
    )
    several = await engine.async_generate(texts[:9], greedy(5, n=3))
    scored = await engine.async_generate(
        texts, greedy(3), return_logprob=True, logprob_start_len=0, top_logprobs_num=2
    )
    last: dict[int, Any] = {}
    pieces = 0
    async for part in await engine.async_generate(texts, parameters, stream=True):
        last[part["index"]], pieces = part, pieces + 1
    errors = []
    wrong: list[tuple[Any, Any]] = [
        ([*texts, shared * 2000], greedy(2)),
        (texts, [*parameters[:-1], greedy(2, top_p=7)]),
    ]
    for prompts, given in wrong:
        try:
            errors.append(str(await engine.async_generate(prompts, given)))
        except ValueError as error:
            errors.append(str(error))
    calls = asyncio.create_task(engine.async_generate(texts, greedy(600)))
    await asyncio.sleep(1.0)
    engine.tokenizer_manager.abort_request(abort_all=True)
    gone = [answer["meta_info"]["finish_reason"]["type"] for answer in await calls]
    return {
        "texts": [answer["text"] for answer in plain],
        "again": [answer["output_ids"] for answer in again],
        "several": [answer["text"] for answer in several],
        "scored": [
            (
                len(answer["meta_info"]["input_token_logprobs"]),
                [round(value, 3) for value, *_ in answer["meta_info"]["output_token_logprobs"]],
            )
            for answer in scored
        ],
        "streamed": [last[index]["text"] for index in range(len(texts))],
        "pieces": pieces,
        "errors": errors,
        "gone": gone,
    }


PARTS = {
    part.__name__: part
    for part in (kinds, streams, aborted_job, lost_clients, too_large, hungry, lists)
}


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Play the parts one after the other; then flush the cache and look what is left."""
    import sglang

    engine = sglang.Engine(
        **{
            "device": "cpu",
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "grammar_backend": "llguidance",
            "disable_cuda_graph": True,
            "dtype": "float32",
            "log_level": "error",
            "sleep_on_idle": True,
            **order["engine"],
        }
    )
    result: dict[str, Any] = {}
    try:
        for name in order["parts"]:
            result[name] = engine.loop.run_until_complete(PARTS[name](engine))
        # An answer is out before the scheduler has put its request away: it may refuse at first.
        for _ in range(50):
            result["flushed"] = bool(engine.flush_cache().success)
            if result["flushed"]:
                break
            time.sleep(0.1)
        state = engine.get_server_info()["internal_states"]
        result["state"] = [s.get("blendserve") for s in state]
    finally:
        engine.shutdown()
    return result


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(json.dumps(main(json.loads(source.read_text()))))
