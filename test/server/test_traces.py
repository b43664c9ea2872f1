"""OpenTelemetry traces of a batch's lines, by SGLang's own tracing, at a real receiver of OTLP.

pytest test/server/test_traces.py
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from scripted import jsonl
from server_process import running
from test_planned_batches import flags
from test_server import completion, finish, submit
from tiny_model import write_tiny_model

pytestmark = pytest.mark.engine


class Receiver(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        found = ExportTraceServiceRequest.FromString(body)
        self.server.spans += [
            span
            for resource in found.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield started
        started.shutdown()


def rids(spans: list[Span]) -> dict[str, set[bytes]]:
    """The traces in which each request's id stands, of the spans that name one."""
    found: dict[str, set[bytes]] = {}
    for span in spans:
        for attribute in span.attributes:
            if attribute.key == "rid":
                found.setdefault(attribute.value.string_value, set()).add(span.trace_id)
    return found


def test_each_line_of_a_batch_is_a_trace_of_its_own(
    tmp_path: Path, receiver: Receiver, model_path: Path, cpu_engine_kwargs: dict[str, Any]
) -> None:
    model = write_tiny_model(tmp_path / "model", model_path)
    given = ["--model-path", str(model), "--schedule-policy", "blendserve"]
    given += ["--max-total-tokens", "2000", "--batch-dir", str(tmp_path / "batches")]
    given += ["--enable-trace", "--otlp-traces-endpoint", receiver.endpoint]
    environment = {
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "SGLANG_OTLP_EXPORTER_SCHEDULE_DELAY_MILLIS": "100",
    }
    command = [*given, *flags(cpu_engine_kwargs)]
    with running(command, tmp_path / "log", environment=environment) as server:
        client = server.client()
        lines = [completion(f"line-{number}", f"Number {number}:") for number in range(3)]
        batch = finish(client, submit(client, jsonl(lines), "/v1/completions").id)
        assert batch.status == "completed", server.tail()
        client.completions.create(model="any", prompt="Online:", max_tokens=2)
        prefix = "blendserve-" + batch.id.removeprefix("batch_")
        end = time.monotonic() + 60
        while True:
            found = rids([*receiver.spans])
            of_lines = {rid: traces for rid, traces in found.items() if rid.startswith(prefix)}
            if len(of_lines) >= 3 and len(found) > len(of_lines):
                break
            assert time.monotonic() < end, (sorted(found), len(receiver.spans), server.tail())
            time.sleep(0.2)
    assert len(of_lines) == 3
    traces = [trace for one in of_lines.values() for trace in one]
    assert len(traces) == len({*traces}) == 3
    others = {trace for rid, one in found.items() if rid not in of_lines for trace in one}
    assert not others & {*traces}
