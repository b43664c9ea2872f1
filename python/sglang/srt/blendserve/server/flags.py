"""Settings of the batch service: `launch_server` flags, with environment variables as defaults.

SGLang builds its `ServerArgs` from the fields of a dataclass and drops every other value of the
command line, so these settings cannot travel in it. They are kept in this module instead, by the
hook on ``ServerArgs.from_cli_args`` (`hooks`): the HTTP server runs in the process that read the
command line. A program that calls ``launch_server(ServerArgs(...))`` itself has no command line
and sets the environment variables.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sglang.srt.blendserve.batch_file.validation import MAX_BYTES, MAX_LINES


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Settings of the batch service.

    Attributes:
        directory: where files and batches live.
        max_file_bytes: largest upload (bytes).
        max_requests: most requests in one batch.
        max_in_flight: most requests of all batches together that are in the engine at once; the
            scheduler plans over these.
        max_in_flight_bytes: most bytes of request lines that are in the engine at once.
    """

    directory: Path
    max_file_bytes: int = MAX_BYTES
    max_requests: int = MAX_LINES
    max_in_flight: int = 8192
    max_in_flight_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{_FLAGS[field.name].flag} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class _Flag:
    flag: str
    kind: Callable[[str], Any]
    help: str

    @property
    def variable(self) -> str:
        """The environment variable with the default: ``--batch-dir``: BLENDSERVE_BATCH_DIR."""
        return "BLENDSERVE_" + self.flag.strip("-").replace("-", "_").upper()


_FLAGS = {
    "directory": _Flag(
        "--batch-dir",
        Path,
        "Directory of the batch service's files and batches; made if need be, used by one server "
        "at a time. Default: $XDG_DATA_HOME/sglang-blendserve/batch-api, where XDG_DATA_HOME is "
        "~/.local/share unless set.",
    ),
    "max_file_bytes": _Flag(
        "--batch-max-file-bytes", int, "Largest file that can be uploaded, in bytes."
    ),
    "max_requests": _Flag("--batch-max-requests", int, "Most requests in one batch."),
    "max_in_flight": _Flag(
        "--batch-max-in-flight",
        int,
        "Most requests of all batches together that are in the engine at once. The scheduler "
        "plans over these: more can share more prefixes, and take more memory.",
    ),
    "max_in_flight_bytes": _Flag(
        "--batch-max-in-flight-bytes",
        int,
        "Most bytes of request lines of all batches together that are in the engine at once.",
    ),
}

_DEST = "blendserve_batch_"

_chosen: BatchSettings | None = None


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add the batch service's flags to SGLang's server parser."""
    group = parser.add_argument_group("batch service (--schedule-policy blendserve)")
    defaults = {field.name: field.default for field in fields(BatchSettings)}
    for name, flag in _FLAGS.items():
        default = "" if name == "directory" else f" Default: {defaults[name]}."
        group.add_argument(
            flag.flag,
            dest=_DEST + name,
            type=flag.kind,
            default=None,
            help=f"{flag.help}{default} Environment: {flag.variable}.",
        )


def read_cli_args(args: argparse.Namespace) -> None:
    """Keep what the command line says for `current`.

    Raises:
        ValueError: a value is out of range or an environment variable is not a number.
    """
    global _chosen
    given = {name: getattr(args, _DEST + name, None) for name in _FLAGS}
    _chosen = _build({name: value for name, value in given.items() if value is not None})


def current() -> BatchSettings:
    """Return the settings of this process: from its command line, or else the environment.

    Raises:
        ValueError: as `read_cli_args`.
    """
    return _chosen or _build({})


def _build(given: dict[str, Any]) -> BatchSettings:
    values: dict[str, Any] = {"directory": _default_directory()}
    for name, flag in _FLAGS.items():
        text = os.environ.get(flag.variable)
        if text:
            try:
                values[name] = flag.kind(text)
            except ValueError:
                raise ValueError(f"{flag.variable} is {text!r}; it must be a number") from None
    return BatchSettings(**(values | given))


def _default_directory() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "sglang-blendserve" / "batch-api"
