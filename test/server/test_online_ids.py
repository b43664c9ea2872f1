"""Online clients and the ids of batches' requests, where all of SGLang's routes meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager
from starlette.requests import Request

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.server import online_ids
from sglang.srt.blendserve.server.front import stand_in_front

OURS = job_ids.make_rid("job", 3, 1)
FORGED = OURS.replace(OURS.split("-")[2], "0123456789abcdef")
REACHING = [
    "b",
    "blend",
    "blendserve",
    "blendserve-",
    "",
    "blendserve-x",
    "blendserve-job-",
    FORGED,
]
ONLINE = ["a", "c", "Blendserve-", "xblendserve-job-", "blendservice", "9f"]

HTTP = Request({"type": "http", "headers": []})


def manager(policy: str = "blendserve", rids: tuple[str, ...] = ()) -> TokenizerManager:
    """SGLang's own class, without the engine that its constructor starts."""
    made: Any = object.__new__(TokenizerManager)
    made.server_args = SimpleNamespace(schedule_policy=policy, tokenizer_worker_num=1)
    made.rid_to_state = dict.fromkeys(rids)
    return made  # type: ignore[no-any-return]


def test_ids_that_reach_those_of_batches() -> None:
    assert job_ids.is_sealed(OURS)
    assert job_ids.is_sealed(f"{OURS}_7")
    assert not any(job_ids.is_sealed(rid) for rid in [*REACHING, *ONLINE])
    assert all(job_ids.reaches_offline(rid) for rid in [*REACHING, OURS])
    assert not any(job_ids.reaches_offline(rid) for rid in ONLINE)
    assert job_ids.parse_rid(OURS) == job_ids.OfflineMark("job", 3, 1)
    assert job_ids.parse_rid(OURS.replace("-3-", "-30-")).total == 30


def test_no_prefix_of_one_job_is_another_s() -> None:
    prefixes = [job_ids.job_prefix(job) for job in ("a", "aa", "a_", "b")]
    assert not [(p, q) for p in prefixes for q in prefixes if p != q and p.startswith(q)]


@pytest.mark.parametrize("kind", [GenerateReqInput, EmbeddingReqInput])
@pytest.mark.parametrize("rid", [*REACHING, ["c", "b"], [FORGED]])
@pytest.mark.parametrize("request_", [HTTP, None, object()])
def test_reaching_ids_are_refused_whoever_sends_them(kind: Any, rid: Any, request_: Any) -> None:
    with pytest.raises(ValueError, match="kept for requests of batches"):
        online_ids._before_request(manager(), kind(text="x", rid=rid), request_)


def test_our_own_ids_are_taken_from_us_and_not_from_a_client_who_has_seen_one() -> None:
    for rid in (OURS, [OURS, f"{OURS}_1"], *ONLINE, None):
        online_ids._before_request(manager(), GenerateReqInput(text="x", rid=rid), None)
    with pytest.raises(ValueError, match="kept for requests"):
        online_ids._before_request(manager(), GenerateReqInput(text="x", rid=OURS), HTTP)


def test_other_policies_are_as_sglang_has_them() -> None:
    online_ids._before_request(manager("fcfs"), GenerateReqInput(text="x", rid="b"), HTTP)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("asked", "ended"),
    [
        ({"abort_all": True}, [("a", False), ("9f", False)]),
        ({"rid": "a"}, [("a", False)]),
        ({"rid": OURS}, []),
        ({"rid": "blendserve-job-"}, []),
        ({"rid": "b"}, []),
    ],
)
async def test_a_client_aborts_online_requests_only(
    asked: dict[str, Any], ended: list[tuple[str, bool]]
) -> None:
    calls: list[tuple[str, bool]] = []

    def original(_: Any, rid: str = "", abort_all: bool = False) -> None:
        calls.append((rid, abort_all))

    engine = manager(rids=("a", OURS, "9f"))
    app = FastAPI()
    stand_in_front(app, ())

    @app.post("/abort_request")
    async def abort_request(body: dict[str, Any]) -> None:
        try:
            online_ids._around_abort(original, engine, **body)
        except ValueError:
            calls.append(("refused", False))

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        assert (await client.post("/abort_request", json=asked)).status_code == 200
    assert calls == ended or (not ended and calls == [("refused", False)])
    calls.clear()
    online_ids._around_abort(original, engine, abort_all=True)  # SGLang itself, to pause
    assert calls == [("", True)]
