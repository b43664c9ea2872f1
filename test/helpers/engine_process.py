"""Engines in processes of their own, for the tests of this folder.

SGLang patches its classes once per process and its engines leave threads behind.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from forked import engine_script, run_all

HERE = Path(__file__).parent

CHECKS = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "2"}
"""SGLang's strict memory checks: a KV slot lost or counted twice in any step ends the run."""

TWO_RANKS = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "SGLANG_NCCL_SO_PATH": "none"}
"""SGLang wants a NUMA node for each tensor parallel rank unless it is told which cores to use.
The other variable: see `runtime.cpu.defaults.ENVIRONMENT`."""

LONG_PROMPT = 150
"""Tokens; more than the chunk of most runs."""


def rank_cores(flags: dict[str, Any]) -> dict[str, str]:
    """What the environment of an engine with these flags needs for its ranks.

    SGLang 0.5.17 counts the ranks of each data parallel replica alone, 0.5.23 those of all.
    """
    data_parallel = "dp_size" in flags and version("sglang") != "0.5.17"
    return TWO_RANKS if "tp_size" in flags or data_parallel else {}


_SECONDS = 400
"""How long a script may take."""

_READ_AT_START = ("PYTHONPATH", "SGLANG_TEST_RETRACT")
"""Variables that Python or SGLang reads when it starts or is imported."""


def play(
    script: str, folder: Path, order: dict[str, Any], env: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run one of this folder's scripts on ``order``, both ways as JSON files in ``folder``.

    In a fork of a process that has imported SGLang, which takes a third of the time. From cold with
    a GPU, and where SGLang looks at the environment when it is imported; the tests of `run` and of
    the server start from cold, too.
    """
    source, target, log = (folder / name for name in ("order.json", "result.json", "log.txt"))
    source.write_text(json.dumps(order))
    env = env or {}
    if shutil.which("nvidia-smi") is None and not any(name in env for name in _READ_AT_START):
        files = [str(source), str(target)]
        (done,) = run_all([engine_script(HERE / script, files, env, _SECONDS)])
        log.write_text(done.out + done.err)
        status = done.status
    else:
        with log.open("w") as output:  # a pipe would stay open as long as any of SGLang's processes
            status = subprocess.run(
                [sys.executable, str(HERE / script), str(source), str(target)],
                env=os.environ | env,
                stdout=output,
                stderr=output,
                timeout=_SECONDS,
                check=False,
            ).returncode
    assert status == 0, log.read_text()[-4000:]
    result: dict[str, Any] = json.loads(target.read_text())
    return result


def run(
    folder: Path, engine: dict[str, Any], *, env: dict[str, str] | None = None, **order: Any
) -> dict[str, Any]:
    """One engine over `workload`, with the strict checks on."""
    order = {"engine": engine, "requests": workload(), **order}
    return play("engine_run.py", folder, order, CHECKS | (env or {}))


def workload() -> list[list[Any]]:
    """Shared prefixes with short answers, long prompts, and short prompts with long answers."""
    rng = random.Random(0)
    word = lambda: rng.randrange(1000, 40_000)  # noqa: E731
    prefixes = [[word() for _ in range(60)] for _ in range(3)]
    requests: list[list[Any]] = []
    for number in range(45):
        if number % 3 == 0:
            prompt, tokens = [*prefixes[number % 4 % 3], *(word() for _ in range(6))], 3
        elif number % 3 == 1:
            prompt, tokens = [word() for _ in range(LONG_PROMPT)], 8
        else:
            prompt, tokens = [word() for _ in range(5)], 60
        ends_by_itself = number % 2 == 0
        requests.append(
            [prompt, {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": not ends_by_itself}]
        )
    return requests
