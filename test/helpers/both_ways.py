"""The two ways to answer a batch file, `run` and the server, with a scripted engine behind each.

Whatever strikes the core that they share must show under both, so tests of it are written once
and take a `Way`. What is left open by one `Way.answer` is done by the next, as by a run with
``--resume`` and by a server that is started again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from scripted import ScriptedEngine, jsonl, line, serve

from sglang.srt.blendserve.answering.stop import Stop
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.run.run_loop import answering_loop
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.run.suspects import Suspects
from sglang.srt.blendserve.store.journal import ResultJournal

GOOD = [f"good-{n}" for n in range(12)]
INPUT = (
    jsonl([line(name, f"prompt {name}\u2028") for name in GOOD[:5]])
    + b"\n{not JSON\r\n"
    + jsonl([line("refused"), line(GOOD[0], "a name used twice")])
    + jsonl([line(name, f"prompt {name}") for name in GOOD[5:]])
)
OUTCOMES: dict[tuple[str | None, int], int | str] = {
    # custom_id and line -> status of its response, or code of its error
    **{(name, 1 + n): 200 for n, name in enumerate(GOOD[:5])},
    (None, 7): "invalid_json_line",
    ("refused", 8): 400,
    (GOOD[0], 9): "duplicate_custom_id",
    **{(name, 10 + n): 200 for n, name in enumerate(GOOD[5:])},
}
SLOTS = 4


class Way(ABC):
    """One batch file, and what has become of it so far."""

    log: type[RunLog] | type[ResultJournal]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    async def answer(self, engine: ScriptedEngine, until: Callable[[], bool] | None = None) -> None:
        """Answer what has no result; with ``until``, stop as soon as that is so."""

    @abstractmethod
    async def results(self) -> list[dict[str, Any]]:
        """Return the result lines, once all lines have one."""

    async def outcomes(self) -> dict[tuple[str | None, int], int | str]:
        """Return what each line came to, in the form of `OUTCOMES`; no line may be there twice."""
        lines = {("good-0", False): 1, ("good-0", True): 9, (None, True): 7, ("refused", False): 8}
        lines |= {(name, False): OUTCOME_LINES[name] for name in GOOD[1:]}
        found: dict[tuple[str | None, int], int | str] = {}
        for one in await self.results():
            error, name = one["error"], one["custom_id"]
            key = name, lines[name, error is not None]
            assert key not in found
            found[key] = error["code"] if error else one["response"]["status_code"]
        return found


OUTCOME_LINES = {name: number for (name, number) in OUTCOMES if name in GOOD[1:]}


class ByRun(Way):
    """The core as the command `run` has it: its own files, no deadline, one job."""

    log = RunLog

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files = folder / "out.jsonl", folder / "errors.jsonl"
        (folder / "in.jsonl").write_bytes(INPUT)

    async def answer(self, engine: ScriptedEngine, until: Callable[[], bool] | None = None) -> None:
        stop = Stop()
        with (
            BatchSource(str(self.folder / "in.jsonl"), Rules()) as source,
            RunLog(*self._files, resume=True) as log,
        ):
            found = source.scan(log.find)
            log.begin(Identity("job", source.digest, "model"))
            with (
                source.lines(log.__contains__) as lines,
                Suspects(log.engine_record, log) as suspects,
            ):
                loop = answering_loop(
                    log, lines, found, engine, stop, None, SLOTS, record=suspects.record
                )
                answering = asyncio.create_task(loop.run())
                if until is not None:
                    await wait_for(until)
                    stop.request("interrupted")
                await answering

    async def results(self) -> list[dict[str, Any]]:
        return [orjson.loads(x) for path in self._files for x in path.read_bytes().splitlines()]


class ByServer(Way):
    """The core as the batch service has it: HTTP, database, journal."""

    log = ResultJournal

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._batch_id: str | None = None

    async def answer(self, engine: ScriptedEngine, until: Callable[[], bool] | None = None) -> None:
        async with serve(self.folder / "batches", engine, max_in_flight=SLOTS) as service:
            if self._batch_id is None:
                self._batch_id = (await service.submit(INPUT)).id
            if until is None:
                assert (await service.finish(self._batch_id)).status == "completed"
            else:
                await wait_for(until)

    async def results(self) -> list[dict[str, Any]]:
        assert self._batch_id is not None
        async with serve(self.folder / "batches") as service:
            batch = await service.client.batches.retrieve(self._batch_id)
            output, errors = await service.result_lines(batch)
        return output + errors


WAYS: dict[str, type[Way]] = {"run": ByRun, "server": ByServer}


async def wait_for(condition: Callable[[], bool]) -> None:
    """Return when ``condition`` is true."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError
