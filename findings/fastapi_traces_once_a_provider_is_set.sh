#!/usr/bin/env bash
# A FastAPI application without a word on telemetry makes spans once anything in its process sets an
# OpenTelemetry tracer provider, four for each answered call.
#
# Guess beforehand: FastAPI makes no spans of its own. Those of its routes take the package
# opentelemetry-instrumentation-fastapi and a call of it, so a service that sets a tracer provider
# for spans of its own (an engine that traces each generation, say) exports those and no others.
#
# Seen (fastapi 0.165.0, starlette 1.10.0, httpx 0.28.1, opentelemetry-sdk 1.45.2): nothing without a
# provider, also where the SDK is installed. With one, a call makes the spans "GET /double/{number}",
# "fastapi.dependencies", "fastapi.endpoint" and "fastapi.serialization", the first as a child of the
# caller's span if the caller sends a traceparent. They go to every exporter of the provider. So the
# traces of a service whose calls are far more frequent than its own spans, as polling of batch jobs
# is, are mostly of calls. ``FastAPI(telemetry={"tracing": False})`` ends it; the provider may be set
# before or after the application is made.
#
# Exits with 0 if it is still so, 1 if it has changed. Takes a minute; needs Python 3.11 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
    fastapi==0.165.0 starlette==1.10.0 httpx==0.28.1 opentelemetry-sdk==1.45.2
cat >seen.py <<'PYTHON'
import sys

import fastapi
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

CALLER = 0xB7AD6B7169203331
HEADERS = {"traceparent": f"00-0af7651916cd43dd8448eb211c80319c-{CALLER:016x}-01"}
exporter = InMemorySpanExporter()


def application(**options):
    app = fastapi.FastAPI(**options)

    @app.get("/double/{number}")
    def double(number: int):
        return {"double": 2 * number}

    return app


def spans_of_a_call(app):
    exporter.clear()
    assert TestClient(app).get("/double/21", headers=HEADERS).json() == {"double": 42}
    return exporter.get_finished_spans()


plain = application()
before = spans_of_a_call(plain)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("ours").start_as_current_span("ours"):
    pass
ours = [span.name for span in exporter.get_finished_spans()]
after = spans_of_a_call(plain)
later = spans_of_a_call(application())
refused = spans_of_a_call(application(telemetry={"tracing": False}))
print("fastapi", fastapi.__version__)
print("our own span:", ours)
print("a call before there is a provider:", [span.name for span in before])
print("after:", [span.name for span in after])
print("of an application made later:", [span.name for span in later])
print("with tracing refused:", [span.name for span in refused])
expected = {
    "GET /double/{number}",
    "fastapi.dependencies",
    "fastapi.endpoint",
    "fastapi.serialization",
}
[call] = [span for span in after if span.name.startswith("GET")]
same = ours == ["ours"] and not before and not refused
same &= {span.name for span in after} == {span.name for span in later} == expected
same &= len(after) == 4 and call.parent.span_id == CALLER
print("as described" if same else "this has changed")
sys.exit(not same)
PYTHON
venv/bin/python -W ignore seen.py
