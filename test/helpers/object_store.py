"""A real S3 server on the loopback, and a bucket in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Whatever the machine has of its own must not be asked.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
BUCKET = "s3://bucket"


@contextmanager
def s3_server() -> Iterator[str]:
    """Start the server in a process of its own; give its address."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                raise RuntimeError("the S3 server did not start")
            # It writes a line for each request, which must go somewhere.
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield found[0]
        finally:
            process.kill()


def make_bucket() -> None:
    """Make the bucket anew, empty. The address and `CREDENTIALS` are in the environment."""
    filesystem = files()
    if filesystem.exists("bucket"):
        filesystem.rm("bucket", recursive=True)
    filesystem.mkdir("bucket")


def files() -> Any:
    """Return the server's files, read anew."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    return s3fs.S3FileSystem()


def unfinished_uploads() -> int:
    """Return how many uploads were begun in the bucket and not ended."""
    return len(files().list_multipart_uploads("bucket"))


def rows_in(folder: str, tmp_path: Path) -> list[dict[str, Any]]:
    """Return the rows of the parts in a folder, here or there."""
    from sglang.srt.blendserve.tables import parquet, remote

    with remote.fetched(folder) as local:
        return [*parquet.rows_of(local)]


def texts_of(rows: list[dict[str, Any]]) -> list[tuple[str, str | None, str | None]]:
    """Return what tells rows apart, sorted."""
    return sorted((row["custom_id"], row["text"], row["error_code"]) for row in rows)


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    """Return lines as JSON."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
