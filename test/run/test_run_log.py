"""The log of a run: killed at any byte it goes on, and every line ends with one result."""

from __future__ import annotations

import errno
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.blendserve.answering.result_log import refused
from sglang.srt.blendserve.answering.totals import tally_of
from sglang.srt.blendserve.batch_file.results import Response, answer
from sglang.srt.blendserve.batch_file.types import BatchLine, LineError
from sglang.srt.blendserve.batch_file.validation import parse_lines
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.store.engine_record import EngineRecord
from sglang.srt.blendserve.store.line_result import LineResult

INPUT = b"\n".join(
    [
        json.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/completions",
                "body": {"prompt": name * 3},
            }
        ).encode()
        for name in ("a", "ü", "c", "a", "fails", "e")
    ]
    + [b"not json", b"[]"]
)
IDENTITY = Identity("job", "digest", "model")


def lines() -> Iterator[BatchLine | LineError]:
    return parse_lines(io.BytesIO(INPUT))


def result(line: BatchLine | LineError) -> LineResult:
    if isinstance(line, LineError):
        return refused("job", line)
    status = 400 if line.custom_id == "fails" else 200
    body = {"text": line.body["prompt"] + "\n"}
    response = Response(status_code=status, request_id="r", body=body)
    data = answer("job", line.line, line.custom_id, response).to_json()
    return LineResult(line.line, tally_of(response, None), data)


class Run:
    """The files of one run in a folder."""

    def __init__(self, folder: Path) -> None:
        self.output, self.errors = folder / "out.jsonl", folder / "errors.jsonl"

    def open(self, identity: Identity = IDENTITY, **how: bool) -> RunLog:
        """Open the log as the command does: look at every line of the input, then begin."""
        log = RunLog(self.output, self.errors, **how)
        try:
            for line in lines():
                log.find(line)
            log.begin(identity)
        except BaseException:
            log.close()
            raise
        return log

    def finish(self, stop_after: int | None = None, **how: bool) -> int:
        """Answer the lines without a result, ``stop_after`` of them at most; return how many."""
        answered = 0
        with self.open(**how) as log:
            for line in lines():
                if line.line in log or answered == stop_after:
                    continue
                log.append([result(line)])
                answered += 1
        return answered

    def written(self) -> Counter[bytes]:
        return Counter(
            self.output.read_bytes().splitlines() + self.errors.read_bytes().splitlines()
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


WHOLE = Counter(result(line).data.rstrip(b"\n") for line in lines())


def test_every_line_gets_one_result_in_the_right_file(run: Run) -> None:
    assert run.finish() == 8
    assert run.written() == WHOLE
    names = [json.loads(line)["custom_id"] for line in run.output.read_bytes().splitlines()]
    assert names == ["a", "ü", "c", "e"]
    with run.open(resume=True) as log:
        assert (log.completed, log.failed, log.done) == (4, 4, 8)


@pytest.mark.parametrize("name", ["output", "errors"])
def test_cut_at_every_byte_and_resumed(run: Run, name: str) -> None:
    """A crash can leave any prefix of each file."""
    run.finish()
    path: Path = getattr(run, name)
    data, other = path.read_bytes(), run.written()
    assert other == WHOLE
    for size in range(len(data)):
        path.write_bytes(data[:size])
        left = 4 - data[:size].count(b"\n")
        assert run.finish(resume=True) == left
        assert run.written() == WHOLE, f"cut at byte {size}"


def test_zeros_behind_the_last_synced_line_are_cut_off(run: Run) -> None:
    """Some file systems leave zeros where data had not reached the disk when the power went."""
    run.finish()
    data = run.output.read_bytes()
    keep = data[: data.index(b"\n") + 1]
    run.output.write_bytes(keep + b"\0" * 50 + b"\n" + b"\0" * 5)
    assert run.finish(resume=True) == 3
    assert run.written() == WHOLE


@given(
    stops=st.lists(st.integers(0, 4), max_size=5), cuts=st.lists(st.integers(0, 300), max_size=5)
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_crashes(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], cuts: list[int]
) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    for stop, cut in zip(stops, cuts, strict=False):
        run.finish(stop_after=stop, resume=True)
        for path in (run.output, run.errors):
            os.truncate(path, max(0, path.stat().st_size - cut))
    run.finish(resume=True)
    assert run.written() == WHOLE


def test_results_are_not_touched_without_being_asked(run: Run) -> None:
    run.finish(stop_after=2)
    before = run.written()
    with pytest.raises(RunFailure, match="--resume"):
        run.open()
    assert run.written() == before


def test_only_errors_are_results_too(run: Run) -> None:
    with run.open() as log:
        log.append([result(next(x for x in lines() if isinstance(x, LineError)))])
    with pytest.raises(RunFailure, match=r"errors\.jsonl has results"):
        run.open()


def test_overwrite_starts_again(run: Run) -> None:
    run.finish()
    other = Identity("other", "another digest", "model")
    with run.open(other, overwrite=True) as log:
        assert log.done == 0
    assert not run.written()
    with run.open(other, resume=True):
        pass


def test_resume_without_results_starts(run: Run) -> None:
    assert run.finish(resume=True) == 8


def test_resume_with_another_input_is_refused(run: Run) -> None:
    run.finish(stop_after=3)
    before = run.written()
    with pytest.raises(RunFailure, match="another input"):
        run.open(Identity("job", "changed", "model"), resume=True)
    assert run.written() == before


def test_without_begin_nothing_is_changed(run: Run) -> None:
    """The input turned out to be none: it was read between opening and `begin`."""
    RunLog(run.output, run.errors).close()
    assert not run.output.exists()
    run.finish(stop_after=3)
    torn = run.output.read_bytes() + b'{"id": "ba'
    run.output.write_bytes(torn)
    for options in ({"resume": True}, {"overwrite": True}):
        RunLog(run.output, run.errors, **options).close()
        assert run.output.read_bytes() == torn


def test_resume_keeps_the_job_and_tells_of_another_model(run: Run) -> None:
    run.finish(stop_after=3)
    with run.open(Identity("new", "digest", "other"), resume=True) as log:
        assert log.identity == Identity("job", "digest", "other")
        assert log.earlier_model == "model"


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"format": 2}'])
def test_resume_without_a_usable_sidecar_is_refused(run: Run, content: bytes | None) -> None:
    run.finish(stop_after=3)
    sidecar = run.output.with_name("out.jsonl.run.json")
    if content is None:
        sidecar.unlink()
    else:
        sidecar.write_bytes(content)
    with pytest.raises(RunFailure, match=r"out\.jsonl\.run\.json"):
        run.open(resume=True)


def test_a_foreign_line_between_results_is_refused_and_kept(run: Run) -> None:
    run.finish()
    data = run.output.read_bytes()
    first, rest = data.split(b"\n", 1)
    run.output.write_bytes(first + b"\nmine\n" + rest)
    with pytest.raises(RunFailure, match="line 2"):
        run.open(resume=True)
    assert b"\nmine\n" in run.output.read_bytes()


def test_two_runs_cannot_write_the_same_file(run: Run) -> None:
    with run.open() as log:
        log.append([result(next(lines()))])
        for resume, overwrite in ((True, False), (False, True), (False, False)):
            with pytest.raises(RunFailure, match="another run"):
                run.open(resume=resume, overwrite=overwrite)
    assert len(run.output.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("output", ["/dev/null", "missing/out.jsonl", "."])
def test_an_output_that_is_no_file(tmp_path: Path, output: str) -> None:
    with pytest.raises(RunFailure):
        RunLog(tmp_path / output, tmp_path / "errors.jsonl")


def test_a_full_disk_leaves_whole_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.write, [700]

    def write(fd: int, data: bytes) -> int:
        taken = real(fd, data[: room[0]]) if room[0] else 0
        room[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    def append_all(log: RunLog) -> None:
        for line in lines():
            if line.line not in written:
                log.append([result(line)])
                written.add(line.line)

    written: set[int | None] = set()
    with run.open() as log:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(RunFailure, match="Make room"):
            append_all(log)
        room[0] = 10_000  # room again, but what was begun is not mended by going on
        with pytest.raises(RunFailure):
            append_all(log)
        monkeypatch.undo()
    assert 0 < len(written) < 8
    assert run.written() < WHOLE
    assert run.finish(resume=True) == 8 - len(written)
    assert run.written() == WHOLE


def test_failed_lines_alone_are_answered_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish()
    whole, answers = run.written(), run.output.read_bytes()
    failed = len(run.errors.read_bytes().splitlines())
    assert failed == 4  # refused by the endpoint, a name used twice, and two bad lines
    assert run.finish(resume=True) == 0
    assert run.finish(2, resume=True, retry_errors=True) == 2  # broken off
    assert run.output.read_bytes() == answers
    assert run.finish(resume=True) == failed - 2
    assert run.written() == whole


def test_errors_are_kept_until_the_input_is_known_to_be_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.finish()
    whole = run.written()
    with pytest.raises(RunFailure, match="another input"):
        run.open(Identity("job", "other", "model"), resume=True, retry_errors=True)
    assert run.written() == whole


@pytest.mark.parametrize(
    ("options", "digest", "kept"),
    [
        ({"resume": True}, "digest", True),  # though nobody has a result yet
        ({"resume": True}, "another", False),
        ({"resume": True, "retry_errors": True}, "digest", False),
        ({"overwrite": True}, "digest", False),
        ({}, "digest", False),
    ],
)
def test_suspects_are_those_of_the_run_that_is_resumed(
    tmp_path: Path, options: dict[str, bool], digest: str, kept: bool
) -> None:
    files = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    with RunLog(*files) as log:
        log.begin(Identity("job", "digest", "model"))
        EngineRecord(log.engine_record).enter(3)
    with RunLog(*files, **options) as log:
        log.begin(Identity("later", digest, "model"))
        assert log.engine_record.exists() == kept
        assert EngineRecord(log.engine_record).inside() == ([3] if kept else [])
