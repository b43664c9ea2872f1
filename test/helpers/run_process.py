"""The ``run`` command as a process of its own, and the files of the batch it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

SECONDS = 500
"""What one run may take on a machine that is busy with others."""

ENGINE_FLAGS = ("--max-total-tokens", "4000", "--dtype", "float32", "--random-seed", "1")


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in a folder, in a process group of its own as a shell does."""
    return subprocess.Popen(
        [sys.executable, "-m", "sglang.srt.blendserve.cli", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=folder,
        env={"OMP_NUM_THREADS": "1", **os.environ},
    )


@dataclass
class Batch:
    """One batch: its files in a folder, and what the last run printed."""

    folder: Path
    model: str
    printed: str = ""
    output: Path = field(init=False)
    errors: Path = field(init=False)

    def __post_init__(self) -> None:
        self.output, self.errors = self.folder / "out.jsonl", self.folder / "out.errors.jsonl"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command on this batch."""
        files = ["-i", "in.jsonl", "-o", self.output.name, "--summary", "summary.json"]
        flags = ["--model-path", self.model, *ENGINE_FLAGS, *arguments]
        return started(self.folder, *files, *flags)

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Wait for the command to end and leave no process behind; return its exit status."""
        self.printed, _ = process.communicate(timeout=SECONDS)
        _, left = psutil.wait_procs(_processes(process.pid), timeout=30)
        assert not left, "processes are still there"
        return process.returncode

    def wait_for_results(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until the output has ``count`` lines."""
        deadline = time.monotonic() + SECONDS
        while not self.output.exists() or self.output.read_bytes().count(b"\n") < count:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no results"
            time.sleep(0.05)

    def results(self, path: Path) -> list[dict[str, Any]]:
        """Return the lines of a result file."""
        return [json.loads(text) for text in path.read_text().splitlines()]

    @property
    def names(self) -> list[str]:
        """The custom_id of each line of the output."""
        return [result["custom_id"] for result in self.results(self.output)]

    @property
    def summary(self) -> dict[str, Any]:
        """What the last run wrote with ``--summary``."""
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return found


def scheduler_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the scheduler process of a running command."""
    children = psutil.Process(process.pid).children(recursive=True)
    [scheduler] = [child for child in children if "scheduler" in " ".join(child.cmdline())]
    return scheduler


def _processes(group: int) -> list[psutil.Process]:
    """Return the processes of a process group that are not dead already."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue  # it has ended meanwhile
    return found
