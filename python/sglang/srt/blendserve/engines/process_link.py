"""An engine in a process of its own on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from sglang.srt.blendserve.engines.child import COMMAND, Start
from sglang.srt.blendserve.engines.placement import Placement
from sglang.srt.blendserve.engines.stream_link import SocketMessages

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_END_SECONDS = 10.0


class ProcessLink:
    """The way to a process with an engine; see `link.Link`."""

    def __init__(self, process: subprocess.Popen[bytes], messages: SocketMessages) -> None:
        self._process, self._messages = process, messages

    @classmethod
    async def start(
        cls, server_args: ServerArgs, placement: Placement, *, keep_prompts: bool
    ) -> ProcessLink:
        """Start a process, whose first message says whether its engine has started.

        Args:
            server_args: the engine's, resolved.
            placement: where it runs.
            keep_prompts: whether answers bring the token ids of their prompts.

        Raises:
            OSError: there can be no such process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", COMMAND, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    env={**os.environ, **placement.environment},
                )
            except OSError:
                ours.close()
                raise
        messages = await SocketMessages.over(ours)
        messages.send(pickle.dumps(Start(server_args, placement.cores, keep_prompts)))
        return cls(process, messages)

    @property
    def process_id(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, message: bytes) -> None:
        """Send a message, sooner or later; to an engine that is gone it does nothing."""
        self._messages.send(message)

    async def receive(self) -> bytes:
        """Return the next message. Raises LinkClosed where there will be none."""
        return await self._messages.receive()

    async def close(self) -> None:
        """End the process and those that it has started: in order if that is a matter of seconds,
        else by force. Calling it twice does nothing."""
        self._messages.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _END_SECONDS)
        self.kill()
        await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End the process and those that it has started at once."""
        # By their group: SGLang's processes end with their parent only once they have asked for
        # that, seconds after their start, and who has lost its parent is nobody's child.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
