"""A real server in a process of its own: started, killed, started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import OpenAI

START_SECONDS = 400
"""Starting takes half a minute on an idle machine and minutes on a busy one."""


class ServerProcess:
    """One run of ``python -m sglang.launch_server`` with a batch directory."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        *,
        api_key: str | None = None,
        environment: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.port = free_port()
        self.api_key = api_key
        self.log = log
        extra = ["--port", str(self.port)]
        if api_key:
            extra += ["--api-key", api_key]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sglang.launch_server", *command, *extra],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}),
            )
        if wait:
            try:
                self.wait_until_up()
            except BaseException:
                self.kill()
                raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        """Return the official client, which checks every answer against its types."""
        return OpenAI(
            api_key=self.api_key or "none",
            base_url=f"{self.url}/v1",
            max_retries=0,
            _strict_response_validation=True,
            **options,
        )

    def wait_until_up(self) -> None:
        """Return when the server answers and has warmed up."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server has ended:\n{self.tail()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.tail())

    def tail(self, characters: int = 4000) -> str:
        """Return the end of the server's log."""
        return self.log.read_text(errors="replace")[-characters:]

    def engine_processes(self) -> list[psutil.Process]:
        """Return the scheduler and the detokenizer."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL the server, as a crash of the machine would; then what it leaves behind."""
        children = self.engine_processes() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=30)

    def terminate(self) -> None:
        """SIGTERM the server and wait for its end."""
        children = self.engine_processes()
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.wait(timeout=120)
        psutil.wait_procs(children, timeout=30)


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[ServerProcess]:
    """Run a server; nothing of it is left afterwards."""
    server = ServerProcess(command, log, **options)
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a loopback port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
