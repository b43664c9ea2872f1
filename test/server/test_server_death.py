"""A real server whose engine dies of one line, started again from outside each time."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import jsonl
from server_process import running
from test_server import completion, lines_of, submit

from sglang.srt.blendserve.runtime.injected_fault import VARIABLE
from sglang.srt.blendserve.server.engine_death import EXIT_STATUS

pytestmark = pytest.mark.engine

EACH = {"a": 1, "b": 2}
MOST_DEATHS = math.ceil(math.log2(sum(EACH.values()))) + 2


def test_the_line_becomes_an_error_and_both_batches_are_answered(
    tiny_model: Path, cpu_engine_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    flags = ["--model-path", str(tiny_model), "--schedule-policy", "blendserve"]
    flags += ["--max-total-tokens", "4000", "--batch-dir", str(tmp_path / "batches")]
    for name, value in cpu_engine_kwargs.items():
        flags += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    texts = [[f"Count to {n} in {job}:" for n in range(count)] for job, count in EACH.items()]
    texts[1][1] = "A purple marker:"
    batches: list[str] = []
    for start in range(MOST_DEATHS + 1):
        fault = {VARIABLE: "kill:purple marker"}
        with running(
            flags, tmp_path / f"log-{start}", environment=fault, wait=not batches
        ) as server:
            client = server.client()
            for job, lines in zip("ab", texts, strict=True) if not batches else ():
                content = jsonl([completion(f"{job}{n}", t, 4) for n, t in enumerate(lines)])
                batches.append(submit(client, content, "/v1/completions").id)
            while server.process.poll() is None:
                try:
                    shown = [client.batches.retrieve(batch) for batch in batches]
                except Exception:  # it ends this moment
                    continue
                if all(batch.status == "completed" for batch in shown):
                    break
                time.sleep(0.1)
            else:
                assert server.process.returncode == EXIT_STATUS, server.tail()
                continue
            output = [lines_of(client, batch.output_file_id) for batch in shown]
            assert shown[0].error_file_id is None
            [error] = lines_of(client, shown[1].error_file_id)
            break
    else:
        pytest.fail("the line was not found")
    assert [one["custom_id"] for one in output[0]] == ["a0"]
    assert [one["custom_id"] for one in output[1]] == ["b0"]
    assert (error["custom_id"], error["response"]) == ("b1", None)
    assert (error["error"]["code"], error["error"]["line"]) == ("engine_died", 2)
    assert start <= MOST_DEATHS
