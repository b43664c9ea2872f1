"""The planner's process as those see it who feed an engine."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.dispatch import planner_process
from sglang.srt.blendserve.dispatch.engine_rooms import Rooms
from sglang.srt.blendserve.dispatch.messages import News, Taken, pack, unpack
from sglang.srt.blendserve.dispatch.planner import PlannerSettings

_ANSWER_SECONDS = 60.0
"""After which a process that does not answer is taken for dead. It starts in two seconds, and plans
in a thread of its own."""


_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Has glibc give the memory of a plan's arrays back: by itself it keeps what is below 32 MiB."""


class PlannerDied(RuntimeError):
    """The planner's process has ended, or knows nothing of the job: `PlannerClient.open` it."""


class PlannerClient:
    """A planner's process, started when first needed, and again when it has died.

    May be used from any thread. Use as a context manager, which ends the process.
    """

    def __init__(self, settings: PlannerSettings) -> None:
        """Start nothing yet; plans are made with ``settings``."""
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: Connection | None = None
        self._ended = False
        self.starts = 0
        """How often a process was started."""

    def __enter__(self) -> PlannerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def process_id(self) -> int | None:
        """Of the process, None while there is none."""
        return None if self._process is None else self._process.pid

    def open(self, job: str, folder: Path, skip: NDArray[np.bool_]) -> None:
        """Plan the requests of a job from now on.

        Args:
            folder: of its request store, which may still grow.
            skip: by line number, whether it is not to be handed over.

        Raises:
            PlannerDied: the process has ended at once.
        """
        with self._lock:
            if self._ended:
                raise PlannerDied("The planner was told to end.")
            if self._process is None or self._process.poll() is not None:
                self._start()
            header = {"op": "open", "job": job, "folder": str(folder)}
            self._ask(pack(header, np.asarray(skip, dtype=np.bool_).tobytes()))

    def take(self, job: str, most: int, news: News, rooms: Rooms | None = None) -> Taken:
        """Return the next lines of a job, so many at ``most``; none while no plan is there, or no
        engine may have more now.

        Args:
            rooms: of the engines; None: of the one engine, which has room.

        Raises:
            PlannerDied: it knows nothing of the job; ``news`` are lost.
        """
        with self._lock:
            header = {"op": "take", "job": job, "most": most, "news": [*news]}
            if rooms is not None:
                header["rooms"] = [*rooms]
            return Taken.from_header(self._ask(pack(header)))

    def view(self) -> Mapping[str, Any] | None:
        """Return the plan over all jobs, as `plan.densities.plan_figures` has it, with the numbers
        of requests that wait and run; None without a process."""
        with self._lock, contextlib.suppress(PlannerDied):
            if self._messages is not None:
                return self._ask(pack({"op": "view"}))
        return None

    def close(self, job: str) -> None:
        """Forget a job. Without a process it does nothing."""
        with self._lock, contextlib.suppress(PlannerDied):
            if self._messages is not None:
                self._ask(pack({"op": "close", "job": job}))

    def end(self) -> None:
        """End the process, also one that does not answer. Calling it twice does nothing."""
        self._ended = True
        if (process := self._process) is not None:
            process.kill()  # whoever waits for its answer goes on, and lets the lock go
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._end()
        try:
            self._messages, theirs = Pipe()
        except OSError as error:
            raise PlannerDied(f"The planner's process cannot be asked: {error}.") from error
        with theirs:
            descriptor = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", planner_process.COMMAND, str(descriptor)],
                    pass_fds=[descriptor],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **_GIVE_BACK},
                )
                self.starts += 1
            except OSError as error:  # no memory for it, say
                self._end()
                raise PlannerDied(f"The planner's process does not start: {error}.") from error
        with contextlib.suppress(OSError):  # it has ended, which the first question finds
            self._messages.send_bytes(pickle.dumps(self._settings))

    def _ask(self, message: bytes) -> dict[str, Any]:
        if self._messages is None:
            raise PlannerDied("The planner's process is not there.")
        try:
            self._messages.send_bytes(message)
            if not self._messages.poll(_ANSWER_SECONDS):
                raise EOFError
            reply, _ = unpack(self._messages.recv_bytes())
        except (EOFError, OSError) as error:
            self._end()
            raise PlannerDied("The planner's process has ended.") from error
        if reply.get("unknown"):
            raise PlannerDied("The planner knows nothing of the job.")
        return reply

    def _end(self) -> None:
        if self._messages is not None:
            self._messages.close()
            self._messages = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
