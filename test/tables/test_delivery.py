"""What becomes of the results of a run: parts of a table, files in an object store (a real one).

Run: pytest test/tables/test_delivery.py
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import parts_run
import pyarrow.dataset
import pytest
from object_store import files, rows_in, texts_of, unfinished_uploads

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.run import result_file
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.outputs import delivery_of
from sglang.srt.blendserve.run.run_log import Identity, RunLog
from sglang.srt.blendserve.tables import parquet, remote

LINES = 230
EXPECTED = sorted(
    (f"request-{n}", None, "engine_error") if n % 7 == 0 else (f"request-{n}", str(n), None)
    for n in range(1, LINES + 1)
)


def run(output: str, *more: str, seconds: float = 0.0, lines: int = LINES) -> None:
    """Answer all lines that have no result, in this process."""
    argv, sys.argv = sys.argv, ["parts_run", output, str(lines), str(seconds), *more]
    try:
        parts_run.main()
    finally:
        sys.argv = argv


def killed(output: str, *more: str, after: float, lines: int = LINES) -> bool:
    """The same in another process, killed so long after it was begun; whether it was."""
    command = [sys.executable, parts_run.__file__, output, str(lines), "1.5", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.kill()
    return process.wait() == -signal.SIGKILL


# --- a folder on this machine ------------------------------------------------------------------


def test_parts_are_a_table(tmp_path: Path) -> None:
    run(f"{tmp_path}/out/")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in names if name.endswith(".parquet")] == [
        f"part-0000{n}.parquet" for n in range(5)
    ]
    assert [parquet_rows(tmp_path / "out" / name) for name in names[-5:]] == [50] * 4 + [30]
    assert "_SUCCESS" in names
    assert texts_of([*parquet.rows_of(tmp_path / "out")]) == EXPECTED
    # The result files are there for --retry-errors; what reads folders of Parquet passes them over.
    assert "_results.errors.jsonl" in names
    assert pyarrow.dataset.dataset(tmp_path / "out").count_rows() == LINES


def parquet_rows(path: Path) -> int:
    return len([*parquet.rows_of(path)])


def test_nothing_but_parts_stays_where_no_line_failed(tmp_path: Path) -> None:
    run(f"{tmp_path}/out/", "--failing", "0")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in names if not name.startswith("part-")] == ["_SUCCESS", "_run.json"]
    with pytest.raises(Exception, match="--overwrite starts again"):
        run(f"{tmp_path}/out/", "--failing", "0")
    run(f"{tmp_path}/out/", "--failing", "0", "--resume")
    assert len(rows_in(f"{tmp_path}/out/", tmp_path)) == LINES


def test_parts_come_while_lines_are_answered(tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    command = [sys.executable, parts_run.__file__, output, "2000", "60"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "part-00001.parquet").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        assert not (tmp_path / "out" / "_SUCCESS").exists()
        assert len(rows_in(output, tmp_path)) >= 100
    finally:
        process.kill()
        process.wait()


def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    moments = random.Random(0)
    output, resume = f"{tmp_path}/out/", []
    for _ in range(6):
        killed(output, *resume, after=moments.uniform(0.3, 1.6))
        if (tmp_path / "out" / "_results.jsonl.run.json").exists():
            resume = ["--resume"]
    run(output, *resume)
    assert texts_of(rows_in(output, tmp_path)) == EXPECTED
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_part_that_is_in_place_but_not_in_the_journal_is_made_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(f"{output}/")
    journal = output / "_results.jsonl.parts"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:9])  # the fourth is torn
    (output / "part-00003.parquet").write_bytes(b"half")
    run(f"{output}/", "--resume")
    assert texts_of(rows_in(f"{output}/", tmp_path)) == EXPECTED


def test_lines_that_the_disk_had_not_kept_are_in_no_part(tmp_path: Path) -> None:
    """As after a power failure that took the end of the result files."""
    output = tmp_path / "out"
    run(f"{output}/")
    results = output / "_results.jsonl"
    journal = output / "_results.jsonl.parts"
    for path, lines in ((results, 60), (journal, 2)):  # of a run that had come to two parts
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:lines]))
    for number in (2, 3, 4):
        (output / f"part-0000{number}.parquet").unlink()
    run(f"{output}/", "--resume", "--backwards")
    assert texts_of(rows_in(f"{output}/", tmp_path)) == EXPECTED


def test_a_retry_writes_the_parts_anew(tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    run(output)
    run_with_retry(output)
    rows = rows_in(output, tmp_path)
    assert texts_of(rows) == sorted((f"request-{n}", str(n), None) for n in range(1, LINES + 1))


def run_with_retry(output: str) -> None:
    """Answer the failed lines, which are good now."""
    delivery = delivery_of(output, None, None, 50, retry=True)
    delivery.prepare(again=True, overwrite=False)
    with RunLog(delivery.output, delivery.errors, resume=True, retry_errors=True) as log:
        lines = [parts_run.line_of(number) for number in range(1, LINES + 1)]
        todo = [line for line in lines if not log.find(line)]
        assert len(todo) == LINES // 7
        log.begin(Identity(parts_run.JOB, "digest", "model"))
        with delivery.running(log):
            log.append([parts_run.result_of(line) for line in todo])
    delivery.finish(failed=log.failed)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(b"somebody's")
    with pytest.raises(Exception, match=r"data\.parquet, which is no part of a run"):
        run(f"{tmp_path}/")
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


# --- an object store ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out/"])
def test_what_a_run_puts_in_a_bucket(
    bucket: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = f"{bucket}/results/{name}"
    run(output)
    store = files()
    names = sorted(store.ls("bucket/results" + ("/out" if name == "out/" else "")))
    parts = [f"bucket/results/out/part-0000{n}.parquet" for n in range(5)]
    assert (
        names
        == {
            "out.jsonl": ["bucket/results/out.errors.jsonl", "bucket/results/out.jsonl"],
            "out.parquet": ["bucket/results/out.parquet"],
            "out/": ["bucket/results/out/_SUCCESS", "bucket/results/out/_run.json", *parts],
        }[name]
    )
    if name == "out.jsonl":
        lines = [line for one in names for line in store.cat_file(one).splitlines()]
        assert len({json.loads(line)["custom_id"] for line in lines}) == len(lines) == LINES
    else:
        assert texts_of(rows_in(output, tmp_path)) == EXPECTED
    # Failed lines may be tried again; what nobody needs any more goes.
    folder = tmp_path / f"{name.rstrip('/')}.run"
    assert folder.exists()
    shutil.rmtree(folder)
    with pytest.raises(Exception, match="--overwrite"):
        run(output)


def test_the_working_folder_goes_with_the_last_answer(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("out.jsonl", "out.parquet", "out/"):
        run(f"{bucket}/{name}", "--failing", "0")
    assert [*tmp_path.iterdir()] == []
    run(f"{bucket}/other.jsonl", "--failing", "0", "--work-dir", str(tmp_path / "work"))
    assert [*tmp_path.iterdir()] == []


def test_killed_while_it_uploads(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    moments, resume = random.Random(1), []
    for _ in range(5):
        killed(f"{bucket}/out/", *resume, after=moments.uniform(1.2, 3.0))
        if (tmp_path / "out.run" / "_results.jsonl.run.json").exists():
            resume = ["--resume"]
    run(f"{bucket}/out/", *resume)
    assert texts_of(rows_in(f"{bucket}/out/", tmp_path)) == EXPECTED


def test_killed_in_the_middle_of_an_upload_the_object_is_not_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends between two parts of a multipart upload."""
    monkeypatch.chdir(tmp_path)
    output = f"{bucket}/out.jsonl"
    script = f"""
import os, sys
import s3fs
sys.path.insert(0, {str(Path(parts_run.__file__).parent)!r})
call = s3fs.S3FileSystem._call_s3
async def dying(self, method, *args, **kwargs):
    if method == "complete_multipart_upload":
        os.kill(os.getpid(), 9)
    return await call(self, method, *args, **kwargs)
s3fs.S3FileSystem._call_s3 = dying
import boto3
import parts_run
real_result = parts_run.result_of
def long(line, failing):
    result = real_result(line, failing)
    return result._replace(data=result.data.replace(b'"text":"', b'"text":"' + b"x" * 600_000))
parts_run.result_of = long
sys.argv = ["parts_run", {output!r}, "200", "0", "--failing", "0"]
parts_run.main()
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not files().exists("bucket/out.jsonl")
    assert unfinished_uploads() == 1
    run(output, "--failing", "0", "--resume", lines=200)
    lines = files().cat_file("bucket/out.jsonl").splitlines()
    assert len({json.loads(line)["custom_id"] for line in lines}) == len(lines) == 200
    assert not (tmp_path / "out.jsonl.run").exists()


def test_a_store_that_is_away_ends_no_run_and_loses_nothing(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    put = remote.put

    def away(local: Path, path: str) -> None:
        raise remote.DataError(f"{path} cannot be written: no way there")

    monkeypatch.setattr(remote, "put", away)
    with pytest.raises(Exception, match=r"no way there\n.*with --resume .* delivers them"):
        run(f"{bucket}/out/", seconds=1.5)
    assert "trying again" in capsys.readouterr().err
    monkeypatch.setattr(remote, "put", put)
    run(f"{bucket}/out/", "--resume")
    assert texts_of(rows_in(f"{bucket}/out/", tmp_path)) == EXPECTED


def test_a_machine_that_is_gone_is_replaced_by_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spot machines: only what is in the bucket is left of a run."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    real = parts_run.result_of

    def stops(line: Any, failing: int) -> Any:
        if line.line == 120:
            raise KeyboardInterrupt
        return real(line, failing)

    monkeypatch.setattr(parts_run, "result_of", stops)
    with pytest.raises(KeyboardInterrupt):
        run(f"{bucket}/out/")
    assert len(rows_in(f"{bucket}/out/", tmp_path)) == 119  # what was done is there
    monkeypatch.chdir(tmp_path / "other")
    answered = []

    def counted(line: Any, failing: int) -> Any:
        answered.append(line)
        return real(line, failing)

    monkeypatch.setattr(parts_run, "result_of", counted)
    run(f"{bucket}/out/", "--resume")
    assert len(answered) == LINES - 119
    assert texts_of(rows_in(f"{bucket}/out/", tmp_path)) == EXPECTED


def test_parts_of_two_runs_that_overlap_are_put_right(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry that had come to half of the parts when its machine was gone."""
    monkeypatch.chdir(tmp_path)
    output = f"{bucket}/out/"
    run(output)
    store = files()
    old = {name: store.cat_file(name) for name in store.ls("bucket/out") if "part-" in name}
    run_with_retry(output)
    for name in sorted(old)[2:]:
        files().pipe_file(name, old[name])
    shutil.rmtree(tmp_path / "out.run", ignore_errors=True)
    run(output, "--failing", "0", "--resume")
    rows = rows_in(output, tmp_path)
    names = [row["custom_id"] for row in rows]
    assert sorted(names) == sorted(f"request-{n}" for n in range(1, LINES + 1))


def test_a_folder_is_listed_anew_each_time(bucket: str, tmp_path: Path) -> None:
    """The library remembers what it was told of a folder, and others write there, too."""
    output = f"{bucket}/out/"
    run(output, "--failing", "0", "--work-dir", str(tmp_path / "work"), lines=50)
    assert len(rows_in(output, tmp_path)) == 50
    client = boto3.client("s3")
    content = client.get_object(Bucket="bucket", Key="out/part-00000.parquet")["Body"].read()
    client.put_object(Bucket="bucket", Key="out/part-00001.parquet", Body=content)
    assert len(rows_in(output, tmp_path)) == 100
    assert "part-00001.parquet" in remote.names_in(output)


def test_parts_are_restored_by_number_and_not_by_name(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(f"{output}/", "--failing", "0", lines=60)
    for number, late in ((0, 99_999), (1, 100_000)):
        (output / f"part-0000{number}.parquet").rename(output / f"part-{late:05}.parquet")
    delivery = delivery_of(f"{output}/", None, None, 50, retry=False)
    delivery.prepare(again=True, overwrite=False)
    names = [json.loads(line)["custom_id"] for line in delivery.output.open()]
    assert names == [f"request-{number}" for number in range(1, 61)]


def test_a_folder_of_somebody_is_no_working_folder(bucket: str, tmp_path: Path) -> None:
    """It would be removed in the end, with all that is in it."""
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(RunFailure, match="is not empty, and no working folder"):
        run(f"{bucket}/out.jsonl", "--work-dir", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_keys_with_odd_letters_are_told_apart(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(f"{bucket}/a#1?x.jsonl")
    names = ["bucket/a#1?x.errors.jsonl", "bucket/a#1?x.jsonl"]
    assert sorted(files().ls("bucket")) == names
    with pytest.raises(RunFailure, match=r"a#1\?x\.jsonl is there already"):
        run(f"{bucket}/a#1?x.jsonl")
    run(f"{bucket}/a#2?x.jsonl")


# --- what goes wrong at the edges ----------------------------------------------------------------


def test_overwrite_takes_nothing_away_before_the_run_begins(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(f"{output}/", "--failing", "0")
    before = sorted(path.name for path in output.iterdir())
    arguments = ["run", "-i", str(tmp_path / "absent.jsonl"), "-o", f"{output}/"]
    assert cli.main([*arguments, "--model-path", "none", "--overwrite"]) == 1
    assert [name for name in sorted(p.name for p in output.iterdir()) if name in before] == before
    run(f"{output}/", "--failing", "0", "--overwrite", lines=60)
    assert len(rows_in(f"{output}/", tmp_path)) == 60


def test_beside_a_run_that_has_the_folder_nothing_is_taken_away(tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    command = [sys.executable, parts_run.__file__, output, "200", "4"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "part-00000.parquet").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(RunFailure, match="is being written by another run"):
        run(output, "--overwrite")
    assert process.wait() == 0
    assert len(rows_in(output, tmp_path)) == 200


@pytest.mark.parametrize("removed", [1, 2, 3, 4])
def test_killed_while_what_is_not_needed_any_more_is_removed(
    removed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, left = f"{tmp_path}/out/", removed
    unlink = Path.unlink

    def killed_at(path: Path, *, missing_ok: bool = False) -> None:
        nonlocal left
        if path.name.startswith("_results"):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed_at)
    with contextlib.suppress(KeyboardInterrupt):
        run(output, "--failing", "0")
    monkeypatch.undo()
    answered: list[Any] = []
    real = parts_run.result_of

    def counted(line: Any, failing: int) -> Any:
        answered.append(line)
        return real(line, failing)

    monkeypatch.setattr(parts_run, "result_of", counted)
    run(output, "--failing", "0", "--resume")
    assert not answered
    assert len(rows_in(output, tmp_path)) == LINES


def test_answers_are_delivered_though_the_summary_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a"}\n')
    (tmp_path / "folder").mkdir()
    arguments = ["run", "-i", f"{tmp_path}/in.jsonl", "-o", f"{tmp_path}/out/"]
    arguments += ["--model-path", "none", "--summary", f"{tmp_path}/folder"]
    assert cli.main(arguments) == 1
    assert "Cannot write" in capsys.readouterr().err
    assert len(rows_in(f"{tmp_path}/out/", tmp_path)) == 1
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_disk_that_keeps_nothing_is_heard_of_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system says so once: whoever syncs first must not be the only one to know."""
    with RunLog(tmp_path / "out.jsonl", tmp_path / "errors.jsonl") as log:
        log.begin(Identity(parts_run.JOB, "digest", "model"))
        log.append([parts_run.result_of(parts_run.line_of(1))])

        def fails(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(result_file.os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(RunFailure, match="Input/output error"):
                log.sync()
        monkeypatch.undo()
        log.sync()


# --- flags -------------------------------------------------------------------------------------


def test_a_working_folder_is_of_one_output(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(f"{bucket}/a/out.jsonl")
    with pytest.raises(Exception, match=r"holds the results of a run for s3://bucket/a/out\.jsonl"):
        run(f"{bucket}/b/out.jsonl")
    with pytest.raises(Exception, match="holds no results to go on with"):
        run(f"{bucket}/c/other.jsonl", "--resume")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-i", "in.jsonl", "-o", "https://host/out.jsonl"], "nothing can be written to the web"),
        (["-i", "in.jsonl", "-o", "s3://b/out.jsonl", "--errors", "e"], "goes beside an output"),
        (["-i", "in.jsonl", "-o", "out/", "--errors", "e.jsonl"], "does not go with a table"),
        (["-i", "in.jsonl", "-o", "out.jsonl", "--work-dir", "w"], "not on this machine"),
        (["-i", "s3://b/x", "-o", "s3://b/x/"], "is, or lies in, --input s3://b/x"),
        (["-i", "s3://b/x/", "-o", "s3://b/x/o.parquet"], "is, or lies in, --input s3://b/x/"),
        (["-i", "in/", "-o", "in/"], "is, or lies in"),
        (["-i", ".", "-o", "out/"], "is, or lies in"),
        (["-i", "s3://b/in/", "-o", "s3://b/in/deep/out/"], "is, or lies in"),
        (["-i", "in.jsonl", "-o", "s3://bucket"], "s3://bucket is a bucket"),
        (["-i", "in.jsonl", "-o", "s3://k:s@b/o.jsonl"], "leave the credentials out"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", *flags, "--model-path", "none"])
    assert words in capsys.readouterr().err
