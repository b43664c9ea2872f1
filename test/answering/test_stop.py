"""The one way that stops a job: which reason counts, and who wakes up."""

from __future__ import annotations

import asyncio

import pytest

from sglang.srt.blendserve.answering.disk_retry import DiskRetry
from sglang.srt.blendserve.answering.stop import Stop, Stopped

pytestmark = pytest.mark.anyio


async def test_the_first_reason_counts() -> None:
    stop = Stop()
    assert stop.reason is None
    assert not await stop.requested_within(0.01)
    stop.request("cancelled")
    stop.request("expired")
    assert stop.reason == "cancelled"
    await stop.wait()
    assert await stop.requested_within(60)


async def test_a_server_that_goes_down_suspends_what_is_being_cancelled() -> None:
    stop = Stop()
    stop.request("cancelled")
    assert not await stop.suspended_within(0.01)
    stop.request("suspended")
    stop.request("failed")
    assert stop.reason == "suspended"
    assert await stop.suspended_within(60)


async def test_a_full_disk_is_waited_for_until_the_job_is_suspended() -> None:
    stop = Stop()
    retry = DiskRetry("a job", stop)

    async def write() -> None:
        raise PermissionError(13, "Permission denied", "/a/path")

    writing = asyncio.create_task(retry.persist(write))
    while retry.problem is None:
        await asyncio.sleep(0.01)
    assert retry.problem == "Permission denied"
    with pytest.raises(TimeoutError):  # nothing is sent to the engine meanwhile
        await asyncio.wait_for(retry.wait_until_fine(), 0.05)
    stop.request("cancelled")  # its results so far must get to the disk
    assert not (await asyncio.wait({writing}, timeout=0.05))[0]
    stop.request("suspended")
    with pytest.raises(Stopped):
        await writing
