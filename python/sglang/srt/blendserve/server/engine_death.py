"""What the server does when its engine dies: note it and end at once; look who did it at the start.

The next start reads, from each open batch's record, which lines were in the engine. They are run
again in ever smaller groups behind everybody else's (`answering.turns`); one that was alone at a
death becomes an error line.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil

from sglang.srt.blendserve import job_ids
from sglang.srt.blendserve.store.directory import Store
from sglang.srt.blendserve.store.engine_record import End

logger = logging.getLogger(__name__)

EXIT_STATUS = 70
"""The server's exit status after its engine's death (EX_SOFTWARE): restart it."""

_NOTE = "engine_died.json"


class Death(NamedTuple):
    """What an end of the server was found to have been.

    Attributes:
        lines: lines of batches that were in the engine.
        condemned: how many of them are not sent again.
    """

    lines: int
    condemned: int


def note(directory: Path, online: int) -> None:
    """Keep for the next start that the engine has died, with so many online requests in it."""
    (directory / _NOTE).write_text(json.dumps({"online": online}))


def settle(store: Store, batch_ids: Iterable[str]) -> Death:
    """Find the lines of open batches that were in the engine at the end before this start.

    Blocks; to be called before any of the batches runs.

    Raises:
        OSError: a record or a journal cannot be read or written.
    """
    end = _how_it_ended(store.directory)
    inside: dict[str, list[int]] = {}
    for batch_id in batch_ids:
        if lines := _unfinished(store, batch_id):
            inside[batch_id] = lines
    together = sum(map(len, inside.values()))
    condemned = 0
    for batch_id, lines in inside.items():
        record = store.workspace(batch_id).open_engine_record()
        condemned += len(record.died(lines, together, end))
    if together:
        logger.warning(
            "The server ended with %d lines in the engine (%s). They are run again behind all "
            "others, in groups of at most %d; %d of them was alone and is an error now.",
            together, end, max(1, (together + 1) // 2), condemned,
        )  # fmt: skip
    return Death(together, condemned)


def _how_it_ended(directory: Path) -> End:
    path = directory / _NOTE
    try:
        online = json.loads(path.read_text())["online"]
    except FileNotFoundError:
        return End.DOUBTFUL
    except (ValueError, KeyError, TypeError):  # cut short
        online = 1
    # First of all: should this start be cut short, those left over count as doubtful.
    path.unlink()
    return End.DOUBTFUL if online else End.ENGINE_DIED


def _unfinished(store: Store, batch_id: str) -> list[int]:
    """Return the lines of a batch that are in the engine by its record, and have no result."""
    workspace = store.workspace(batch_id)
    if not workspace.engine_record.exists():
        return []
    inside = workspace.open_engine_record().inside()
    if not inside:
        return []
    journal = workspace.open_journal()
    return [line for line in inside if line not in journal]


def end_with_the_engine(manager: Any, directory: Path) -> None:
    """Have the server end at once when its engine dies, with a note for the next start.

    To be called before the server's event loop runs. SGLang's own handler would do the same, but
    holds on to port and directory until all its processes are gone.

    Args:
        manager: SGLang's tokenizer manager.
        directory: the batch directory.
    """
    stock: type[Any] = manager.signal_handler_class

    class EndingHandler(stock):  # type: ignore[misc]
        """SGLang's handler of signals, but for the one that says that a process has died."""

        def running_phase_sigquit_handler(
            self, signum: int | None = None, frame: FrameType | None = None
        ) -> None:
            logger.error("The engine died; its error, if it had one, stands above. Ending.")
            # It sleeps before it looks at processes that are gone: only if it was asked for.
            if manager.crash_dump_folder:
                manager.dump_requests_before_crash()
            end_now(manager, directory)

    manager.signal_handler_class = EndingHandler


def end_now(manager: Any, directory: Path) -> None:
    """End this process and its children, with a note of what was in the engine."""
    try:
        online = sum(job_ids.parse_rid(rid) is None for rid in list(manager.rid_to_state))
        note(directory, online)
    except OSError as error:  # the end then counts as doubtful
        logger.error("The engine's death cannot be noted: %s", error)
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(EXIT_STATUS)
