"""A disk that is full while a store is written is waited out.

pytest test/requests/test_recorder.py
"""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sglang.srt.blendserve.batch_file.line_check import CheckedLine
from sglang.srt.blendserve.batch_file.validation import Rules
from sglang.srt.blendserve.requests import recorder
from sglang.srt.blendserve.requests.across_lines import AcrossLines
from sglang.srt.blendserve.requests.columns import Flag
from sglang.srt.blendserve.requests.line_blocks import Block
from sglang.srt.blendserve.requests.prepare_worker import prepare
from sglang.srt.blendserve.requests.recorder import PreparationStopped, Recorder
from sglang.srt.blendserve.requests.request_store import open_whole

OF = {"input": "a"}


def block(number: int) -> Any:
    """A block of two lines, the second of which is bad."""
    body = {"prompt": "a", "cache_salt": str(number)}
    good = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
    data = f"{json.dumps(good)}\n{{\n".encode()
    return prepare(Block(number, 0, len(data), 1 + 2 * number), data, Rules(), None)


def reread(*_: object) -> CheckedLine:
    """Not needed: no line names a model."""
    raise AssertionError


@pytest.fixture
def making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder that tries again at once."""
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.001)
    across = AcrossLines(Rules(), in_order=False)
    return Recorder(tmp_path, across, threading.Event())


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_waited_out(
    tmp_path: Path, making: Recorder, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    making.write(block(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", _first_times(os.pwrite, fault, 9))
        making.write(block(1))
        patch.setattr(os, "fsync", _first_times(os.fsync, fault, 5))
        making.finish(OF, reread)
    making.close()
    assert making.problem is None
    store = open_whole(tmp_path, OF)
    assert store is not None
    assert store.column("line").tolist() == [1, 2, 3, 4]
    assert store.column("flags").tolist() == [0, Flag.BAD, 0, Flag.BAD]
    assert list(store.errors()) == [2, 4]
    assert [store.names("namespace")[n] for n in store.column("namespace")] == [""] * 4


def _first_times(call: Any, fault: int, count: int) -> Any:
    """A call that fails at first."""
    left = count

    def fails(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(fault, "no")
        return call(*arguments)

    return fails


def test_a_failure_that_waiting_does_not_mend_is_raised(
    making: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", _first_times(os.pwrite, errno.EBADF, 1))
    with pytest.raises(OSError, match="no"):
        making.write(block(0))


def test_waiting_ends_when_it_is_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()
    making = Recorder(tmp_path, AcrossLines(Rules(), in_order=False), stopped)

    def full(*_: object) -> int:
        stopped.set()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(PreparationStopped):
        making.write(block(0))
    assert making.problem == "full"
    making.close()
    assert open_whole(tmp_path, OF) is None
