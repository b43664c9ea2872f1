"""Requests and answers in an object store (a real S3 server) and on the web.

Run: pytest test/tables/test_remote.py
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from object_store import files, jsonl
from pyarrow import parquet as pyarrow_parquet

from sglang.srt.blendserve import cli
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.run.failure import RunFailure
from sglang.srt.blendserve.run.source import BatchSource
from sglang.srt.blendserve.tables import remote, request_file
from sglang.srt.blendserve.tables.data_error import DataError

LINES = [
    {"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": {"prompt": f"A {n}"}}
    for n in range(3)
]


def prompts(path: str) -> list[str]:
    with request_file.opened(path) as file:
        return [json.loads(line)["body"]["prompt"] for line in file]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that has the files of a folder."""
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_form_is_read_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    store = files()
    store.pipe_file("bucket/in.jsonl", jsonl(LINES))
    store.pipe_file("bucket/in.jsonl.gz", gzip.compress(jsonl(LINES)))
    for name, rows in {"in": LINES, "parts/b": LINES[2:], "parts/a": LINES[:2]}.items():
        table = pyarrow.Table.from_pylist([{"prompt": row["body"]["prompt"]} for row in rows])
        pyarrow_parquet.write_table(table, tmp_path / "x.parquet")
        store.put_file(tmp_path / "x.parquet", f"bucket/{name}.parquet")
    store.pipe_file("bucket/parts/_SUCCESS", b"")
    expected = ["A 0", "A 1", "A 2"]
    for name in ("in.jsonl", "in.jsonl.gz", "in.parquet", "parts", "parts/"):
        assert prompts(f"{bucket}/{name}") == expected, name
        with BatchSource(f"{bucket}/{name}", Rules()) as source:
            assert source.scan(lambda _: False).total == 3
            found = [json.loads(line)["body"]["prompt"] for line in source.plain().open()]
            assert found == expected, name


def test_every_form_is_read_from_the_web(web: str, tmp_path: Path) -> None:
    (tmp_path / "web" / "in.jsonl").write_bytes(jsonl(LINES))
    (tmp_path / "web" / "in.jsonl.gz").write_bytes(gzip.compress(jsonl(LINES)))
    for name in ("in.jsonl", "in.jsonl.gz", "in.jsonl?signature=secret"):
        assert prompts(f"{web}/{name}") == ["A 0", "A 1", "A 2"]
    with pytest.raises(DataError, match=r"absent\.jsonl cannot be read") as caught:
        request_file.opened(f"{web}/absent.jsonl?signature=secret")
    assert "secret" not in str(caught.value).partition(":")[0]


def test_a_signature_is_in_no_message(tmp_path: Path) -> None:
    class Refusing(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = f"http://127.0.0.1:{server.server_port}/in.jsonl?X-Signature=se%2Bcret&b=1"
        with pytest.raises(DataError, match=r"in\.jsonl cannot be read") as caught:
            request_file.opened(path)
        server.shutdown()
    assert "cret" not in str(caught.value)


def test_convert_reads_no_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = tmp_path / "out.jsonl"
    assert cli.main(["convert", "-i", str(tmp_path / "pipe"), "-o", str(out)]) == 1
    assert "is a pipe" in capsys.readouterr().err
    assert not out.exists()


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(jsonl(LINES),), daemon=True).start()
    assert prompts(str(pipe)) == ["A 0", "A 1", "A 2"]


def test_what_cannot_be_read_is_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files().pipe_file("bucket/broken.parquet", b"no table")
    files().pipe_file("bucket/broken.jsonl.gz", b"\x1f\x8bbroken")
    files().pipe_file("bucket/folder/readme.txt", b"")
    files().pipe_file("bucket/deep/day=1/a.parquet", b"")
    for path, words in {
        f"{bucket}/absent.jsonl": r"s3://bucket/absent\.jsonl cannot be read: .* no such file",
        f"{bucket}/broken.parquet": r"s3://bucket/broken\.parquet cannot be read as Parquet",
        f"{bucket}/folder/": r"s3://bucket/folder/ is a folder without \.parquet files",
        f"{bucket}/deep/": r"s3://bucket/deep/ has tables in folders of its own, .*day=1",
        "nowhere://x/in.jsonl": r"nowhere://x/in\.jsonl: .*Known are s3://",
        "gs://bucket/in.jsonl": r"pip install 'sglang-blendserve\[gs\]'",
        "https://me:word@host/in.jsonl": r"https://\.\.\.@host/in\.jsonl: leave the credentials",
    }.items():
        with pytest.raises(RunFailure, match=words) as caught:
            BatchSource(path, Rules())
        assert "word" not in str(caught.value)
    with pytest.raises(DataError, match=r"s3://bucket/broken\.jsonl\.gz cannot be unpacked"):
        request_file.opened(f"{bucket}/broken.jsonl.gz")
    for module in ("fsspec", "fsspec.core"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunFailure, match=r"pip install 'sglang-blendserve\[s3\]'"):
        BatchSource(f"{bucket}/in.jsonl", Rules())


def test_a_file_larger_than_the_disk_is_not_begun(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files().pipe_file("bucket/in.jsonl", jsonl(LINES))
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(DataError, match="let TMPDIR name a place with more"):
        request_file.opened(f"{bucket}/in.jsonl")


def test_convert_from_and_to_a_bucket(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(jsonl(LINES)))
    steps = [str(tmp_path / "in.jsonl.gz"), f"{bucket}/a.parquet", f"{bucket}/b.jsonl"]
    for source, target in itertools.pairwise(steps):
        assert cli.main(["convert", "-i", source, "-o", target]) == 0
        assert cli.main(["convert", "-i", source, "-o", target]) == 1
        assert f"{target} is there already; --overwrite" in capsys.readouterr().err
        assert cli.main(["convert", "-i", source, "-o", target, "--overwrite"]) == 0
        assert f"{target}: 3 rows" in capsys.readouterr().out
    assert files().cat_file("bucket/b.jsonl") == jsonl(LINES).replace(b'": ', b'":').replace(
        b', "', b',"'
    )
    assert cli.main(["convert", "-i", steps[1], "-o", steps[1], "--overwrite"]) == 1
    assert "it would be written over" in capsys.readouterr().err
