"""A process with one engine in it, at the far end of a socket of the process that started it.

It ends when that socket is closed, which it also is by the other process's death, and when its
engine dies. A terminal's Ctrl-C and a batch system's SIGTERM go to all processes; what is to happen
then is decided by the one that feeds the engines.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

COMMAND = """
import sys, sglang_blendserve
from sglang.srt.blendserve.engines.child import main
sys.exit(main(int(sys.argv[1])))
"""
"""What a new interpreter runs, with the number of the socket's file as its argument."""

_DIED = 1
_LOOK_SECONDS = 0.5


class Start(NamedTuple):
    """What the process is told first, pickled by the process that started it.

    Attributes:
        server_args: the engine's, resolved.
        cores: processors to run on; none: all.
        keep_prompts: whether answers bring the token ids of their prompts.
    """

    server_args: ServerArgs
    cores: Sequence[int]
    keep_prompts: bool


def main(descriptor: int) -> int:
    """Start an engine and serve it; return the process's exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # SGLang's modules warn of what a machine without a GPU lacks
    end = socket.socket(fileno=descriptor)
    first = _first_message(end)
    if first is None:
        return 0
    start: Start = pickle.loads(first)
    if start.cores:
        os.sched_setaffinity(0, start.cores)
    started = threading.Event()
    threading.Thread(target=_end_with, args=(end, started), daemon=True).start()
    return _serve(end, start, started)


def _end_with(end: socket.socket, started: threading.Event) -> None:
    """End this process, and those that it has started, if nobody is at the other end any more while
    the engine starts, which takes minutes; `EngineHost` sees it later."""
    while not started.wait(_LOOK_SECONDS):
        with contextlib.suppress(BlockingIOError):
            if not end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                os.killpg(0, signal.SIGKILL)  # its own group: it was started as the first of one


def _first_message(end: socket.socket) -> bytes | None:
    """Return it; None if nobody is at the other end any more."""
    size = int.from_bytes(end.recv(4, socket.MSG_WAITALL), "little")
    data = end.recv(size, socket.MSG_WAITALL)
    return data if data and len(data) == size else None


def _serve(end: socket.socket, start: Start, started: threading.Event) -> int:
    from sglang.srt.blendserve.answering.executor import Executor
    from sglang.srt.blendserve.answering.stop import Stop
    from sglang.srt.blendserve.dispatch.messages import pack
    from sglang.srt.blendserve.engines.control import LocalControl
    from sglang.srt.blendserve.engines.host import EngineHost
    from sglang.srt.blendserve.engines.link import framed
    from sglang.srt.blendserve.engines.local_engine import LocalEngine, kill_children
    from sglang.srt.blendserve.engines.stream_link import SocketMessages

    try:
        engine = LocalEngine(start.server_args)
    except Exception as error:  # of any kind, inside SGLang: told to who started it
        message = str(error) or type(error).__name__
        end.sendall(framed(pack({"op": "no engine", "message": message})))
        return _DIED
    started.set()
    stop = Stop()

    async def serve() -> None:
        messages = await SocketMessages.over(end)
        messages.send(pack({"op": "ready", "seconds": engine.startup_seconds}))
        executor = Executor(
            engine.tokenizer_manager, engine.template_manager, keep_prompts=start.keep_prompts
        )
        host = EngineHost(executor, LocalControl(engine.tokenizer_manager), messages)
        await stop.ends(host.serve())

    engine.run(serve(), stop)
    if stop.reason == "engine died":
        kill_children()
        sys.stderr.flush()
        os._exit(_DIED)  # what is left of SGLang's engine may wait for a process that is gone
    engine.shutdown()
    return 0
