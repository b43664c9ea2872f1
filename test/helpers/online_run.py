"""One engine with a job of offline requests, and online ones that come and go beside it.

    python online_run.py ORDER.json RESULT.json

ORDER: {"engine": flags, "offline": requests of the job, "online": requests beside it, "aborts":
every so many of each is aborted, "after": answers of the job before the first online request comes,
"gap": seconds between two, in the mean, "seed": of all that is random}. Used by test_beside_online,
with the policy and without it.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

from engine_run import OPTIONS
from session_run import greedy, one, prompt, rid


def offline_requests(number: int, rng: random.Random) -> list[tuple[list[int], int]]:
    """Prompts and output tokens: some share a prefix, some are longer than a chunk."""
    prefixes = [prompt(rng, 40) for _ in range(3)]
    made = []
    for at in range(number):
        kind = at % 4
        ids = [*prefixes[at % 3], *prompt(rng, 5)] if kind < 2 else prompt(rng, 160)
        made.append((ids if kind != 3 else prompt(rng, 6), (3, 24, 8, 20)[kind]))
    return made


async def beside(engine: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Answers of both kinds in their order; None for those that were aborted."""
    rng = random.Random(order["seed"])
    offline = offline_requests(order["offline"], rng)
    online = [(prompt(rng, rng.choice((5, 30, 120))), 12) for _ in range(order["online"])]
    gaps = [rng.expovariate(1 / order.get("gap", 0.1)) for _ in online]
    aborts = order.get("aborts", 0)
    dropped = {at for at in range(len(online)) if aborts and at % aborts == aborts - 1}
    left_out = {at for at in range(len(offline)) if aborts and at % aborts == aborts - 1}
    job = [
        asyncio.ensure_future(one(engine, rid("job", len(offline), at), ids, greedy(tokens)))
        for at, (ids, tokens) in enumerate(offline)
    ]
    states, chats = [], []
    while sum(task.done() for task in job) < order.get("after", 0):
        await asyncio.sleep(0.005)
    for at, (ids, tokens) in enumerate(online):
        await asyncio.sleep(gaps[at])
        chats.append(asyncio.ensure_future(one(engine, f"chat-{at}", ids, greedy(tokens))))
        if at in dropped:
            await asyncio.sleep(rng.random() / 10)
            engine.tokenizer_manager.abort_request(rid=f"chat-{at}")
        for number in sorted(left_out)[:: max(len(left_out) // 5, 1)]:
            if aborts and number % len(online) == at:
                engine.tokenizer_manager.abort_request(rid=rid("job", len(offline), number))
        if at % 8 == 0:
            states.append((await engine.tokenizer_manager.get_internal_state())[0])
    gone = {rid("job", len(offline), n) for n in left_out}
    return {
        "online": [
            None if at in dropped else (await chat)["output_ids"] for at, chat in enumerate(chats)
        ],
        "offline": [
            None if rid("job", len(offline), at) in gone else answer["output_ids"]
            for at, answer in enumerate(await asyncio.gather(*job))
        ],
        "during": [state.get("blendserve") for state in states],
    }


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Run, then look at what the engine says of itself."""
    import sglang

    engine = sglang.Engine(**OPTIONS | order["engine"])
    try:
        result = engine.loop.run_until_complete(beside(engine, order))
        state = engine.get_server_info()["internal_states"]
    finally:
        engine.shutdown()
    return {**result, "state": [s.get("blendserve") for s in state]}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(json.dumps(main(json.loads(source.read_text()))))
