"""Measure the service's memory over the largest batch it takes by default.

    PYTHONPATH=test/helpers python test/server/measure_memory.py [--lines 50000] [--megabytes 200]

Streams a file of so many lines and megabytes through upload, validation, answering and
finalizing. The engine is the tests' scripted one, which repeats each prompt at once, so what is
measured is the service: the process's peak resident memory (MiB) after each stage.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
from scripted import ScriptedEngine, line, serve

_BOUNDARY = "boundary"


def peak() -> float:
    """Return the process's peak resident memory so far in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def form(lines: int, line_bytes: int) -> AsyncIterator[bytes]:
    """Yield the upload of so many lines of so many bytes."""
    yield (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    ).encode()
    empty = len(orjson.dumps(line("request-00000000", ""))) + 1
    for number in range(lines):
        prompt = f"{number:08d} ".ljust(line_bytes - empty, "x")
        yield orjson.dumps(line(f"request-{number:08d}", prompt)) + b"\n"
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()


async def main(lines: int, megabytes: int) -> None:
    started = time.monotonic()

    def say(stage: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  peak {peak():7.1f} MiB  {stage}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        async with serve(Path(folder), ScriptedEngine()) as service:
            say("service started")
            response = await service.http.post(
                "/v1/files",
                content=form(lines, megabytes * 10**6 // lines),
                headers={"content-type": f"multipart/form-data; boundary={_BOUNDARY}"},
            )
            file = response.json()
            say(f"uploaded {file['bytes']} bytes")
            batch = await service.client.batches.create(
                input_file_id=file["id"], endpoint="/v1/completions", completion_window="24h"
            )
            status = ""
            while batch.completed_at is None:
                batch = await service.client.batches.retrieve(batch.id)
                if batch.status != status:
                    status = batch.status
                    say(status)
                await asyncio.sleep(0.05)
            assert batch.request_counts is not None
            say(str(batch.request_counts))
            output = await service.client.files.retrieve(batch.output_file_id or "")
            say(f"output file of {output.bytes} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.lines, arguments.megabytes))
