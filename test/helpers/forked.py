"""Many starts of SGLang for the price of one import: each in a fork of a process that has it.

    python forked.py

Each line of its input is a JSON list of ``[before, code]``, two pieces of Python each: what happens
before SGLang loads its plugins, and what then runs in ``__main__``. A line of its output is a list
of ``[status, stdout, stderr]``. The process stays for the next orders of the same test process.

An engine that starts in such a fork (`engine_script`) forks its own processes, too, where SGLang
would start them anew, and saves three imports.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SERVER = "import runpy; runpy.run_module('sglang.launch_server', run_name='__main__')"
"""The program behind ``python -m sglang.launch_server``."""

ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


class Ended(NamedTuple):
    """How one of them ended."""

    status: int
    out: str
    err: str


def command(*flags: str) -> str:
    """Return code that starts SGLang's server with ``flags``."""
    return f"import sys; sys.argv = {['launch_server', *flags]!r}; {SERVER}"


def engine_script(
    script: Path, arguments: Sequence[str], env: Mapping[str, str], seconds: int
) -> tuple[str, str]:
    """Return what `run_all` takes to run ``script``, which starts engines; it is killed after so
    many ``seconds``. ``env``: read by what SGLang does, not by what it imports."""
    before = f"""
import multiprocessing, os, signal, sys
os.environ.update({dict(env)!r})
signal.alarm({seconds})
sys.path.insert(0, {str(script.parent)!r})
sys.argv = {[str(script), *arguments]!r}
start = multiprocessing.set_start_method
multiprocessing.set_start_method = lambda method, force=False: start("fork", force=True)
"""
    return before, f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"


_processes: dict[Path | None, subprocess.Popen[str]] = {}


def run_all(codes: list[tuple[str, str]], path: Path | None = None) -> list[Ended]:
    """Run each of ``codes`` (what happens before, what then runs) in a process of its own.

    ``path`` is a folder whose packages come before those that are installed.
    """
    process = _processes.get(path)
    if process is None:
        process = _processes[path] = _start(path)
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(codes), file=process.stdin, flush=True)
    return [Ended(*one) for one in json.loads(process.stdout.readline())]


def _start(path: Path | None) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | ENVIRONMENT | ({"PYTHONPATH": str(path)} if path else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    return process


def _fork(before: str, code: str) -> Ended:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_play(f"{before}\n{code}"))
        _, waited = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return Ended(os.waitstatus_to_exitcode(waited), out.read(), err.read())


def _play(code: str) -> int:
    """Run ``code`` as Python runs a program; return the status that it ends with."""
    status = 0
    try:
        exec(compile(code, "<scenario>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    """Play orders until nobody gives any."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    # What each of them would import; nothing of SGLang is hooked yet.
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.scheduler

    import sglang.srt.blendserve.policy.named
    import sglang.srt.blendserve.pool.planner  # noqa: F401

    for order in sys.stdin:
        print(json.dumps([_fork(*one) for one in json.loads(order)]), file=answers, flush=True)


if __name__ == "__main__":
    main()
