"""Engines as Ray actors: on the machines of a cluster that have room, also of one that grows.

An actor only passes messages on: the engine runs in a process that the actor starts, as on one
machine (`process_link`), because SGLang's engine wants the main thread of its process. Messages
travel as flat arrays of bytes, which Ray keeps in its object store and does not pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sglang.srt.blendserve.engines.link import LinkClosed, framed, unframed
from sglang.srt.blendserve.engines.placement import Placement, gpus_of
from sglang.srt.blendserve.engines.process_link import ProcessLink

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

Bytes = NDArray[np.uint8]

_GATHER_SECONDS = 0.005
"""Messages of so long go together: a call of Ray's takes longer than most messages."""

_ASK_SECONDS = 2.0
"""An actor that has nothing to tell answers after that; a call in flight is a sign of life."""

_LOCAL = "local"
_NO_DASHBOARD = {"include_dashboard": False}


class EngineActor:
    """What runs on a machine of the cluster: the way to one engine."""

    def __init__(self) -> None:
        self._link: ProcessLink | None = None
        self._said: list[bytes] = []
        self._more = asyncio.Event()
        self._closed = False
        self._reading: asyncio.Task[None] | None = None

    async def start(self, server_args: ServerArgs, placement: Placement) -> None:
        """Start the engine's process.

        Raises:
            OSError: there can be none.
        """
        self._link = await ProcessLink.start(server_args, placement, keep_prompts=True)
        self._reading = asyncio.create_task(self._read(self._link))

    async def _read(self, link: ProcessLink) -> None:
        try:
            while True:
                message = await link.receive()
                self._said.append(framed(message))  # to the list of now, not of before the wait
                self._more.set()
        except LinkClosed:
            link.kill()  # what the engine's process has left behind, if it was killed
            self._closed = True
            self._more.set()

    async def deliver(self, messages: Bytes) -> None:
        """Pass messages on to the engine."""
        assert self._link is not None
        for message in unframed(messages.tobytes()):
            self._link.send(message)

    async def collect(self) -> Bytes | None:
        """Return what the engine has said since, soon; None: it is gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS):
                await self._more.wait()
        self._more.clear()
        said, self._said = b"".join(self._said), []
        if self._closed and not said:
            self._more.set()
            return None
        return np.frombuffer(said, dtype=np.uint8)

    async def close(self) -> None:
        """End the engine."""
        if self._link is not None:
            await self._link.close()


class RayLink:
    """The way to an engine behind an actor; see `link.Link`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._unsent: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None
        self._received: list[bytes] = []
        self._gone = False

    def send(self, message: bytes) -> None:
        """Send a message, sooner or later; to an engine that is gone it does nothing."""
        if self._gone:
            return
        self._unsent.append(framed(message))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        await asyncio.sleep(_GATHER_SECONDS)
        while self._unsent:
            data, self._unsent = b"".join(self._unsent), []
            try:
                await self._actor.deliver.remote(np.frombuffer(data, dtype=np.uint8))
            except _ray().exceptions.RayError:  # `receive` finds the same
                self._gone = True
                return

    async def receive(self) -> bytes:
        """Return the next message. Raises LinkClosed where there will be none."""
        while not self._received:
            if self._gone:
                raise LinkClosed("the actor is gone")
            try:
                found: Bytes | None = await self._actor.collect.remote()
            except _ray().exceptions.RayError as error:
                self._gone = True
                raise LinkClosed(str(error)) from error
            if found is None:
                self._gone = True
                raise LinkClosed("the engine's process is gone")
            self._received = unframed(found.tobytes())[::-1]
        return self._received.pop()

    def kill(self) -> None:
        """End the engine at once: its process ends when the actor is gone."""
        self._gone = True
        _ray().kill(self._actor)

    async def close(self) -> None:
        """End the engine, in order if that is a matter of seconds. Twice it does nothing."""
        with contextlib.suppress(_ray().exceptions.RayError):
            if not self._gone:
                await self._actor.close.remote()
        with contextlib.suppress(_ray().exceptions.RayError):
            _ray().kill(self._actor)
        self._gone = True


def ray_starter(
    server_args: ServerArgs, address: str, *, device_given: bool, threads_given: bool
) -> Callable[[int], Awaitable[RayLink]]:
    """Join a cluster of Ray's; return what starts the engine of a number on it.

    Args:
        server_args: of each engine, resolved. The model must be found by the same path or name on
            each machine, and this package be installed there.
        address: of the cluster: ``auto``, ``host:port``; ``local`` for a new one on this machine.
        device_given: whether the user has said what the engines run on.
        threads_given: whether the user has said how many threads an engine on a CPU has.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no such cluster.
        ValueError, RuntimeError: the settings do not go with it.
    """
    here = address == _LOCAL
    if here:
        # A cluster of the run's own is for nobody else, so it listens on the loopback. A node
        # address of 127.0.0.1 does not do it: Ray takes the machine's own for it, and listens on
        # all. What it calls a cluster on Windows or OSX is one of several machines, on any system.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray = _ray()
    if not ray.is_initialized():
        # "local" by name: without an address Ray joins a cluster that is there.
        ray.init(address=address, logging_level="warning", **_NO_DASHBOARD if here else {})
    gpus = gpus_of(server_args)
    if not gpus and not device_given and ray.cluster_resources().get("GPU"):
        raise ValueError(
            "this machine has no GPU, and the cluster has: start the command on a machine with "
            "one, or give --device cpu"
        )
    actor_class = ray.remote(EngineActor).options(
        num_cpus=1,
        num_gpus=gpus,
        max_restarts=0,
        max_concurrency=1000,
        runtime_env={"env_vars": _environment(threads_given)},
    )

    async def start(number: int) -> RayLink:
        actor = actor_class.remote()
        try:
            # It waits here until a machine has room, be it for hours: engines may join late.
            await actor.start.remote(server_args, Placement())
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            raise OSError(f"Ray has not started the engine: {error}") from error
        except BaseException:
            ray.kill(actor)
            raise
        return RayLink(actor)

    return start


def _environment(threads_given: bool) -> dict[str, str]:
    """What an engine's process needs to know of this one's variables. Ray shows them to whoever
    looks at an actor, so no secrets."""
    known = ("SGLANG_", "TORCHDYNAMO", "HF_", "BLENDSERVE_", *(["OMP_"] if threads_given else []))
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(known) and "TOKEN" not in name
    }


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        message = "--ray-address needs Ray: pip install 'sglang-blendserve[ray]'"
        raise ImportError(message) from error
    return ray
