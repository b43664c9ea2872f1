"""An input whose request store is written by hand, for the dispatcher's tests: no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sglang.srt.blendserve.answering.line_source import FileOrder, scan
from sglang.srt.blendserve.batch_file.validation import Rules, parse_lines
from sglang.srt.blendserve.dispatch.engine_rooms import EngineRooms
from sglang.srt.blendserve.dispatch.planned_lines import PlannedLines
from sglang.srt.blendserve.dispatch.planner_client import PlannerClient
from sglang.srt.blendserve.requests.columns import COLUMNS, ColumnWriter, Flag
from sglang.srt.blendserve.requests.line_blocks import FileScan
from sglang.srt.blendserve.requests.line_blocks import scan as scan_blocks
from sglang.srt.blendserve.requests.request_store import RequestStore

JOB = "job"


@dataclass
class Request:
    """A line of the input; without prompts it is a bad one."""

    prompts: Sequence[Sequence[int]]
    cap: int = 8
    choices: int = 1


def long_prompt(number: int) -> Request:
    """A request that is compute-bound."""
    return Request([[*range(1000 * number, 1000 * number + 400)]], cap=2)


def long_answer(number: int) -> Request:
    """A request that is memory-bound."""
    return Request([[7, number]], cap=400)


@dataclass
class PlannedInput:
    """The input, its store in the making, and who reads it (`Preparing`)."""

    place: Path
    requests: Sequence[Request]
    whole: bool = False
    begun: bool = True
    failure: Exception | None = None
    answered: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.file, self.folder = self.place / "in.jsonl", self.place / "store"
        self.folder.mkdir(parents=True)
        self._offsets: list[tuple[int, int]] = []
        with self.file.open("wb") as file:
            for number, request in enumerate(self.requests, start=1):
                body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": request.cap}
                line = {"custom_id": str(number), "method": "POST", "body": body}
                if request.prompts:
                    line["url"] = "/v1/chat/completions"
                start = file.tell()
                file.write(json.dumps(line).encode() + b"\n")
                self._offsets.append((start, file.tell() - start))
        with self.file.open("rb") as file:
            self.found: FileScan = scan_blocks(file, block_bytes=1 << 10)
        self._writer = ColumnWriter(self.folder)
        self.store = RequestStore(self.folder)
        self._written = 0

    def prepare(self, lines: int | None = None) -> None:
        """Write the rows of so many lines more; of all: the store is whole then."""
        end = len(self.requests) if lines is None else self._written + lines
        for number in range(self._written, end):
            request = self.requests[number]
            rows = request.prompts or [[]]
            columns = {
                name: np.zeros(len(rows), dtype=dtype)
                for name, dtype in COLUMNS.items()
                if name != "offset"
            }
            columns["length"][:] = [len(prompt) for prompt in rows]
            columns["cap"][:] = request.cap
            columns["known"][:] = -1
            columns["choices"][:] = request.choices
            columns["prompt"][:] = range(len(rows))
            columns["line"][:] = number + 1
            columns["byte_offset"][:], columns["byte_length"][:] = self._offsets[number]
            columns["flags"][:] = Flag.EXACT if request.prompts else Flag.BAD
            tokens = [token for prompt in rows for token in prompt]
            self._writer.append(columns, np.array(tokens, dtype=np.int32))
        self._written = end
        self.whole = end == len(self.requests)

    def wait(self, seconds: float | None = None) -> bool:
        """As `Preparation.wait`."""
        if self.failure is not None:
            raise self.failure
        return self.whole

    def lines(self, planner: PlannerClient, rooms: EngineRooms | None = None) -> PlannedLines:
        """The lines that have no result, by plan."""
        with self.file.open("rb") as file:
            found = scan(parse_lines(file, Rules()))
        return PlannedLines(
            JOB,
            self.file,
            Rules(),
            preparation=self,
            planner=planner,
            has_result=self.answered.__contains__,
            bad=found.bad_lines,
            file_order=self._file_order,
            rooms=rooms,
        )

    def _file_order(self, leave_out: object) -> FileOrder:
        stream = self.file.open("rb")
        return FileOrder(parse_lines(stream, Rules()), stream.tell, leave_out)  # type: ignore[arg-type]
