"""How many requests a second one run hands out to engines and takes back: how many engines that is.

    python benchmark/engines/capacity.py --lines 20000 --json out.json

Everything from the batch file to the results on the disk is real: request store, planner, answering
loop, pool of engines, links to processes. The engines answer at once, with the prompt's text, so
what is measured is the run itself. On two cores the engines' own processes take their share of
them; processor seconds of the run's process are what a machine with more cores would be bounded by.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "test" / "helpers"))

from linked_engines import FACTS
from pools import COST
from scripted import ScriptedEngine

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.dispatch.messages import pack
from sglang.srt.blendserve.dispatch.planned_lines import PlannedLines
from sglang.srt.blendserve.dispatch.planner import PlannerSettings
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient
from sglang.srt.blendserve.engines.engine_pool import EnginePool
from sglang.srt.blendserve.engines.host import EngineHost
from sglang.srt.blendserve.engines.stream_link import SocketMessages
from sglang.srt.blendserve.requests.inputs import PlainFile
from sglang.srt.blendserve.requests.preparation import Preparation
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.run.run_loop import answering_loop
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.run.suspects import Suspects

WINDOW = 1024
EACH = 100
"""Requests a second of one engine: what a GPU answers that has short questions."""


def main() -> int:
    """Measure with several numbers of engines; print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(serve(args.serve))
        return 0
    found = []
    for engines in args.engines:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place) / "in.jsonl", args.lines)
            found.append(asyncio.run(measure(Path(place), args.lines, engines)))
        print(json.dumps(found[-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps({"window": WINDOW, "rows": found}, indent=2) + "\n")
    return 0


def write(path: Path, lines: int) -> None:
    """Write the batch: prompts of some 300 characters, groups of ten with a common beginning."""
    with path.open("w") as file:
        for number in range(lines):
            shared = " ".join(f"word{(number // 10 * 7 + place) % 997}" for place in range(40))
            body = {"prompt": f"{shared} question {number}", "max_tokens": 16}
            row = {"custom_id": str(number), "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps(row | {"body": body}) + "\n")


class Child:
    """The link to a process with an engine that answers at once (`engines.link.Link`)."""

    def __init__(self, process: subprocess.Popen[bytes], messages: SocketMessages) -> None:
        self.process, self._messages = process, messages
        self.send, self.receive = messages.send, messages.receive

    @classmethod
    async def start(cls) -> Child:
        """Start one."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, "--serve", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        return cls(process, await SocketMessages.over(ours))

    def kill(self) -> None:
        self.process.kill()

    async def close(self) -> None:
        self._messages.close()
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


class Control:
    """What the engine says of itself: it has no scheduler."""

    async def facts(self) -> Any:
        return FACTS

    async def states(self) -> list[Any]:
        return []

    async def tell_beyond(self, work: Any) -> None:
        pass


async def serve(descriptor: int) -> None:
    """Be an engine."""
    messages = await SocketMessages.over(socket.socket(fileno=descriptor))
    messages.send(pack({"op": "ready", "seconds": 0.1}))
    await EngineHost(ScriptedEngine(), Control(), messages).serve()


async def measure(folder: Path, lines: int, engines: int) -> dict[str, Any]:
    """Answer the batch with so many engines."""
    rules = Rules(max_lines=job_ids.MAX_REQUESTS)
    settings = PlannerSettings(COST, 100_000, most_tokens=4096, engines=engines)

    async def start(_: int) -> Child:
        return await Child.start()

    pool = EnginePool(start, engines, WINDOW, restarts=0, say=print, watchdog_seconds=60.0)
    stop = Stop()
    with (
        BatchSource(str(folder / "in.jsonl"), rules) as source,
        RunLog(folder / "out.jsonl", folder / "errors.jsonl") as log,
    ):
        found = source.scan(log.find)
        log.begin(Identity(job_ids.new_job(), source.digest, "model"))
        preparation = Preparation(
            folder / "store", PlainFile(str(source.plain())), server_args(), rules
        )
        preparation.begin()
        preparation.wait()
        await pool.begin()
        while not all(one.there for one in pool.standings()):
            await asyncio.sleep(0.05)
        with (
            Suspects(log.engine_record, log) as suspects,
            PlannerClient(settings) as planner,
            source.lines(log.__contains__) as in_order,
        ):
            planned = PlannedLines(
                log.identity.job, source.plain(), rules,
                preparation=preparation, planner=planner, has_result=log.__contains__,
                bad=(), file_order=lambda _: in_order, rooms=pool.rooms,
            )  # fmt: skip
            loop = answering_loop(
                log, planned, found, pool, stop, None, WINDOW * engines, record=suspects.record
            )
            began, before = time.monotonic(), time.process_time()
            await loop.run()
            seconds, processor = time.monotonic() - began, time.process_time() - before
        await pool.close()
        preparation.close()
    assert log.done == lines
    return {
        "engines": engines,
        "lines": lines,
        "lines_per_second": lines / seconds,
        "lines_per_processor_second": lines / processor,
        "engines_of_100_a_second": lines / processor / EACH,
        "answered_by": [one.answered for one in pool.standings()],
    }


def server_args() -> Any:
    """The settings that requests are prepared with: the demo's model."""
    from sglang.srt.blendserve.fetch_model.command import fetch
    from sglang.srt.blendserve.runtime.cpu import defaults

    defaults.apply_environment()
    from sglang.srt.server_args import prepare_server_args

    from sglang.srt.blendserve.runtime.compat.server_args import release

    model = str(fetch("smollm2"))
    prepared = prepare_server_args(["--model-path", model, *defaults.server_flags(model)])
    release.resolve(prepared)
    return prepared


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
