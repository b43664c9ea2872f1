"""Runs one script in a process of its own, with its output in a file and a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def run(script: str, order: dict[str, Any], out: Path, name: str, seconds: float) -> dict[str, Any]:
    """Run ``script ORDER.json OUT.json`` and return what it wrote.

    ``error`` is added if it failed or ran out of time; what it wrote before counts. Its whole
    process group is ended: an engine has processes of its own.
    """
    source, target, log = (out / f"{name}{end}" for end in (".order.json", ".json", ".log"))
    source.write_text(json.dumps(order, indent=1))
    target.unlink(missing_ok=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), str(source), str(target)],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    result: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    if code is None:
        result["error"] = f"stopped after {seconds:.0f} s"
    elif code:
        result["error"] = f"exit code {code}: " + _last_lines(log)
    return result


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(log: Path, count: int = 6) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return " | ".join(line for line in lines[-count:] if line.strip())[-1500:]
