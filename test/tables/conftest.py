"""An S3 server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from object_store import BUCKET, CREDENTIALS, make_bucket, s3_server


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A real S3 server on the loopback."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of it, which the environment leads to."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_address}.items():
        monkeypatch.setenv(name, value)
    make_bucket()
    return BUCKET
