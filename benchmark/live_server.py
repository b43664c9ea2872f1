"""A server with the policy and the batch API, for scripts that look at it from outside."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "test" / "helpers"))
from server_process import ServerProcess, running

__all__ = ["ServerProcess", "live_server"]

API_KEY = "secret"


@contextmanager
def live_server(folder: Path, model: Path, flags: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """Run ``launch_server`` with ``--schedule-policy blendserve``, and leave nothing of it.

    Args:
        folder: where the batch directory and the log go.
        model: the model's folder.
        flags: more flags of SGLang's. Those that a machine without a GPU needs are added.

    Raises:
        RuntimeError: the server ends instead of starting; the message has the end of its log.
        TimeoutError: it does not answer within `server_process.START_SECONDS`.
    """
    from sglang.srt.blendserve.runtime.cpu import defaults

    command = ["--model-path", str(model), "--schedule-policy", "blendserve"]
    command += ["--batch-dir", str(folder / "batches"), *flags]
    if not defaults.has_accelerator():
        defaults.apply_environment()
        command += defaults.server_flags(str(model), command)
    with running(command, folder / "log", api_key=API_KEY) as server:
        yield server
