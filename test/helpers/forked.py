"""Many starts of SGLang for the price of one import: each in a fork of a process that has it.

    python forked.py ORDER RESULT

ORDER is a JSON file with a list of ``[before, code]``, two pieces of Python each: what happens
before SGLang loads its plugins, and what then runs in ``__main__``. RESULT is a list of
``[status, stdout, stderr]``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
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


def run_all(folder: Path, codes: list[tuple[str, str]], path: Path | None = None) -> list[Ended]:
    """Run each of ``codes`` (what happens before, what then runs) in a process of its own.

    ``path`` is a folder whose packages come before those that are installed.
    """
    order, result = folder / "order.json", folder / "result.json"
    order.write_text(json.dumps(codes))
    environment = os.environ | ENVIRONMENT | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, __file__, str(order), str(result)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [Ended(*one) for one in json.loads(result.read_text())]


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
    # What each of them would import; nothing of SGLang is hooked yet.
    import sglang.srt.entrypoints.http_server

    import sglang.srt.blendserve.policy.named
    import sglang.srt.blendserve.pool.planner  # noqa: F401

    codes = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([_fork(*one) for one in codes]))


if __name__ == "__main__":
    main()
