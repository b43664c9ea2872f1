"""A server whose batches have a second engine, which is killed.

pytest test/server/test_batch_engines.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from scripted import jsonl
from server_process import ServerProcess, running
from test_planned_batches import LINES, flags, texts
from test_server import finish, lines_of, submit

pytestmark = pytest.mark.engine

MANY = [
    one | {"custom_id": f"{copy}-{one['custom_id']}"}
    for copy in range(4)
    for one in LINES
    if one["custom_id"] != "refused"
]


def second_engine(server: ServerProcess) -> psutil.Process:
    """The process beside SGLang's own."""
    children = psutil.Process(server.process.pid).children()
    [found] = [child for child in children if "engines.child" in " ".join(child.cmdline())]
    return found


def rows_of(server: ServerProcess) -> list[str]:
    """The table of engines on the page."""
    page = httpx.get(f"{server.url}/batches").text
    table = page.partition('id="engines"')[2].partition("</table>")[0]
    return table.split("<tr>")[2:]


def wait_for_both(server: ServerProcess) -> None:
    end = time.monotonic() + 300
    while [row for row in rows_of(server) if "not there" in row]:
        assert time.monotonic() < end, server.tail()
        time.sleep(0.5)


def answered_of(server: ServerProcess, number: int) -> list[float]:
    """What each engine has answered, once the gauges show ``number`` in all: they are set now and
    then."""
    end = time.monotonic() + 60
    while True:
        metrics = httpx.get(f"{server.url}/metrics").text
        answered = [
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("blendserve:batch_engine_answered_requests{")
        ]
        if sum(answered) == number:
            assert 'blendserve:batch_engine_up{engine="1"' in metrics
            return answered
        assert sum(answered) < number
        assert time.monotonic() < end, (answered, server.tail())
        time.sleep(0.2)


def test_two_engines_answer_a_servers_batches(
    tmp_path: Path, tiny_model: Path, cpu_engine_kwargs: dict[str, Any]
) -> None:
    given = ["--model-path", str(tiny_model), "--schedule-policy", "blendserve", "--enable-metrics"]
    given += ["--max-total-tokens", "4000", "--dtype", "float32", "--random-seed", "1"]
    given += ["--batch-dir", str(tmp_path / "batches"), "--batch-max-in-flight", "16"]
    given += ["--batch-engines", "2", *flags(cpu_engine_kwargs)]
    with running(given, tmp_path / "log") as server:
        client = server.client()
        wait_for_both(server)
        batch = finish(client, submit(client, jsonl(MANY), "/v1/completions").id)
        answers = texts(lines_of(client, batch.output_file_id))
        assert len(answers) == len(MANY), server.tail()
        by_name: dict[str, set[str]] = {}
        for name, answer in answers.items():
            by_name.setdefault(name.partition("-")[2], set()).add(str(answer))
        assert all(len(several) == 1 for several in by_name.values())  # whoever answered
        answered = answered_of(server, len(MANY))
        assert len(answered) == 2
        assert min(answered) > len(MANY) / 8

        other = submit(client, jsonl(MANY), "/v1/completions")
        while client.batches.retrieve(other.id).request_counts.completed < 30:
            time.sleep(0.05)
        second_engine(server).kill()
        online = client.completions.create(model="default", prompt="Hello", max_tokens=3)
        assert online.choices[0].text
        other = finish(client, other.id)
        assert other.status == "completed", server.tail()
        assert texts(lines_of(client, other.output_file_id)) == answers
        wait_for_both(server)  # it is started again
        alone = second_engine(server)
        server.terminate()
        assert not alone.is_running()
