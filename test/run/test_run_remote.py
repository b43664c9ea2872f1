"""``run`` with a real engine between buckets of a real S3 server, on a machine that goes away.

    pytest test/run/test_run_remote.py -m engine

Two engine starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pyarrow
import pytest
from object_store import BUCKET, CREDENTIALS, files, make_bucket, rows_in, s3_server
from pyarrow import parquet
from run_process import SECONDS, started

pytestmark = pytest.mark.engine

LINES = 60
TOKENS, LONG = 24, 400
"""Output tokens of most lines, and of the last ten: these keep the run going while it is killed."""


def run_on(folder: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    folder.mkdir()
    names = ["-i", f"{BUCKET}/in.parquet", "-o", f"{BUCKET}/out/", "--model-path", str(model)]
    flags = ["--part-rows", "10", "--max-in-flight", "6", "--max-total-tokens", "4000", *more]
    return started(folder, *names, *flags)


def test_a_run_goes_on_where_only_the_bucket_is_left(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as address:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        make_bucket()
        lengths = [TOKENS] * (LINES - 10) + [LONG] * 10
        rows = [
            {"prompt": f"Number {n}:", "max_tokens": tokens, "ignore_eos": True}
            for n, tokens in enumerate(lengths)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
        files().put_file(tmp_path / "in.parquet", "bucket/in.parquet")

        first = run_on(tmp_path / "first", tiny_model)
        deadline = time.monotonic() + SECONDS
        while len(files().glob("bucket/out/part-*")) < 2:
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        children = psutil.Process(first.pid).children(recursive=True)
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        psutil.wait_procs(children, timeout=30)
        kept = {row["custom_id"]: row for row in rows_in(f"{BUCKET}/out/", tmp_path)}
        assert 20 <= len(kept) < LINES

        second = run_on(tmp_path / "second", tiny_model, "--resume")
        printed, _ = second.communicate(timeout=SECONDS)
        assert second.returncode == 0, printed
        assert f"{len(kept)} lines have their result, {LINES - len(kept)} to do" in printed
        found = rows_in(f"{BUCKET}/out/", tmp_path)
        names = [row["custom_id"] for row in found]
        assert sorted(names) == sorted(f"row-{n}" for n in range(1, LINES + 1))
        in_order = sorted(found, key=lambda row: int(row["custom_id"].removeprefix("row-")))
        assert [row["completion_tokens"] for row in in_order] == lengths
        assert {row["custom_id"]: row for row in found if row["custom_id"] in kept} == kept
        assert files().exists("bucket/out/_SUCCESS")
        assert [*(tmp_path / "second").iterdir()] == []
