"""Anything a client may send: never a 500, never a hang, never a file outside the directory.

What is sent is made from the server's own OpenAPI document: every operation it lists, with values
of the types it names and of all others. Multipart bodies and file contents: test_upload.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Service, jsonl, line, serve

pytestmark = pytest.mark.anyio

text = st.text(max_size=40) | st.sampled_from(
    ["..", "../../etc/passwd", "%2e%2e%2f", "\x00", "file-" + "0" * 32, "batch_" + "f" * 32, "24h"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)


def resolved(schema: Any, schemas: dict[str, Any]) -> Any:
    """Return a schema of the document with its references replaced by what they name."""
    if isinstance(schema, list):
        return [resolved(one, schemas) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return resolved(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    return {key: resolved(value, schemas) for key, value in schema.items()}


def like(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Return values that a schema asks for, or any others."""
    if "anyOf" in schema:
        return st.one_of([like(one) for one in schema["anyOf"]]) | values
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")])) | values
    if schema.get("type") == "object":
        known = {name: like(one) for name, one in schema.get("properties", {}).items()}
        return st.fixed_dictionaries({}, optional=known) | values
    if schema.get("type") == "integer":
        return st.integers(-1, 10_001) | values
    return values


class Sent:
    """What the fuzzer sends, drawn from one service's OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.operations = [
            (method, path, resolved(operation, document["components"]["schemas"]))
            for path, item in document["paths"].items()
            for method, operation in item.items()
        ]

    def requests(self) -> st.SearchStrategy[tuple[str, str, dict[str, Any], bytes | None]]:
        """Return (method, path, query, JSON body)."""
        return st.sampled_from(self.operations).flatmap(self._request)

    def _request(self, operation: tuple[str, str, dict[str, Any]]) -> st.SearchStrategy[Any]:
        method, path, description = operation
        query = {
            one["name"]: like(one["schema"]).map(str)
            for one in description.get("parameters", [])
            if one["in"] == "query"
        }
        content = description.get("requestBody", {}).get("content", {})
        body: st.SearchStrategy[bytes | None] = st.none()
        if "application/json" in content:
            body = like(content["application/json"]["schema"]).map(dumps) | st.binary(max_size=60)
        return st.tuples(
            st.just(method),
            text.map(lambda name: re.sub(r"{\w+}", lambda _: as_id(name), path)),
            st.fixed_dictionaries({}, optional=query),
            body,
        )  # fmt: skip


def as_id(name: str) -> str:
    return quote(name.encode("utf-8", "surrogatepass"), safe="") or "x"


def dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, lone surrogates
        return repr(value).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    async with serve(tmp_path_factory.mktemp("fuzz") / "batch-api") as running:
        yield running


async def test_every_operation_takes_anything(service: Service) -> None:
    root = service.store.files.path("x").parents[2]
    document = (await service.http.get("/openapi.json")).json()
    file = (await service.submit(jsonl([line("a")]))).input_file_id
    before = tree(root)

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(Sent(document).requests())
    def draw(request: tuple[str, str, dict[str, Any], bytes | None]) -> None:
        drawn.append(request)

    drawn: list[tuple[str, str, dict[str, Any], bytes | None]] = []
    draw()
    for method, path, query, body in drawn:
        headers = {} if body is None else {"content-type": "application/json"}
        response = await service.http.request(
            method.upper(), path, params=query, content=body, headers=headers
        )
        # 405 and 307: "" or "/" as an id make another path
        assert response.status_code in (200, 307, 400, 404, 405, 409), (method, path, query, body)
        if response.status_code == 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert tree(root) == before
    assert (await service.client.files.retrieve(file)).id == file


async def test_the_document_describes_every_parameter(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    found = {}
    for method, path, operation in Sent(document).operations:
        names = {one["name"] for one in operation.get("parameters", [])}
        for content in operation.get("requestBody", {}).get("content", {}).values():
            names |= set(content["schema"]["properties"])
        found[f"{method} {path}"] = names
        errors = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
        assert set(errors["properties"]["error"]["properties"]) == {
            "message",
            "type",
            "param",
            "code",
        }
        assert "422" not in operation["responses"]
    assert found == {
        "post /v1/files": {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"},
        "get /v1/files": {"after", "limit", "order", "purpose"},
        "get /v1/files/{file_id}": {"file_id"},
        "delete /v1/files/{file_id}": {"file_id"},
        "get /v1/files/{file_id}/content": {"file_id"},
        "post /v1/batches": {
            "input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after",
            "priority", "webhook_url", "idempotency-key",
        },
        "get /v1/batches": {"after", "limit"},
        "get /v1/batches/{batch_id}": {"batch_id"},
        "post /v1/batches/{batch_id}": {"batch_id", "priority", "paused"},
        "post /v1/batches/{batch_id}/cancel": {"batch_id"},
        "get /v1/batches/{batch_id}/results": {"batch_id", "after", "limit"},
        "get /v1/batches/{batch_id}/errors": {"batch_id"},
        "post /v1/batches/{batch_id}/retry": {"batch_id", "idempotency-key"},
    }  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(metadata=st.dictionaries(st.text(max_size=64), st.text(max_size=512), max_size=16))
async def test_any_metadata_comes_back_as_it_was(
    service: Service, metadata: dict[str, str]
) -> None:
    body = {
        "input_file_id": await an_input(service),
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": metadata,
    }
    try:
        content = orjson.dumps(body)
    except TypeError:
        return  # not UTF-8: such a body cannot be sent
    response = await service.http.post(
        "/v1/batches", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 200
    assert response.json()["metadata"] == metadata
    assert (await service.http.get("/batches?limit=1")).status_code == 200


async def an_input(service: Service) -> str:
    listed = await service.client.files.list(purpose="batch", limit=1)
    if listed.data:
        return listed.data[0].id
    return (await service.submit(jsonl([line("a")]))).input_file_id


def tree(root: Path) -> set[Path]:
    """Return the files outside and inside the directory, but for SQLite's own."""
    return {path for path in root.rglob("*") if "blendserve.db" not in path.name
            and "batches" not in path.parts and path.parent.name != "files"}  # fmt: skip
