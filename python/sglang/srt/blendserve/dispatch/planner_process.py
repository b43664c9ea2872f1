"""The planner's process: it answers messages, and plans while there are none.

Planning a hundred thousand requests takes seconds of processor time, which a process that takes
in answers does not have. `planner_client` starts it, without SGLang: that would take seconds, too.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection

from sglang.srt.blendserve.dispatch.planner import Planner

COMMAND = """
import sys, sglang_blendserve
sglang_blendserve.without_sglang()
from sglang.srt.blendserve.dispatch.planner_process import main
main(int(sys.argv[1]))
"""
"""What a new interpreter runs, with the number of the messages' file as its argument."""

_BUSY_SECONDS = 0.02
_STILL_SECONDS = 0.2
_SWITCH_SECONDS = 0.0005
"""A plan is made by a thread that needs the interpreter for a moment, a thousand times: by default
it would wait for 5 ms each time while rows are taken up."""


def main(descriptor: int) -> None:
    """Answer messages until their other end is closed, or the process that started this is gone.

    The first one holds the `planner.PlannerSettings`, pickled by that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    os.nice(5)  # behind the engine's own processes
    sys.setswitchinterval(_SWITCH_SECONDS)
    parent = os.getppid()
    messages = Connection(descriptor)
    try:
        planner, busy = Planner(pickle.loads(messages.recv_bytes())), False
        while os.getppid() == parent:
            if messages.poll(_BUSY_SECONDS if busy else _STILL_SECONDS):
                messages.send_bytes(planner.answer(messages.recv_bytes()))
            busy = planner.work(0.0)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # nobody wants any more
