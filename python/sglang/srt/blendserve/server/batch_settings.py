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
import re
from dataclasses import dataclass
from pathlib import Path

from sglang.srt.blendserve.allowed_hosts import AllowedHosts, refusal_of
from sglang.srt.blendserve.batch_file.validation import MAX_BYTES, MAX_LINES
from sglang.srt.blendserve.flag_fields import Flags, flag
from sglang.srt.blendserve.server.users import Users, read_users

_ORIGIN = re.compile(r"https?://[^/\s,]+")


def _default_directory() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "sglang-blendserve" / "batch-api"


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """Settings of the batch service; every field is a flag ``--batch-<name>``."""

    directory: Path = flag(  # noqa: RUF009 - it makes a field
        help="Directory of the batch service's files and batches; made if need be, used by one "
        "server at a time.",
        name="dir",
        factory=_default_directory,
        shown="$XDG_DATA_HOME/sglang-blendserve/batch-api, where XDG_DATA_HOME is ~/.local/share "
        "unless set",
    )
    max_file_bytes: int = flag(MAX_BYTES, "Largest file that can be uploaded, in bytes.", least=1)
    max_requests: int = flag(MAX_LINES, "Most requests in one batch.", least=1)
    max_in_flight: int = flag(
        8192,
        "Most requests of all batches together that are in an engine at once. The scheduler plans "
        "over these: more can share more prefixes, and take more memory.",
        least=1,
    )
    engines: int = flag(
        1,
        "Engines that answer batches: the server's own, which online requests stay with, and "
        "others in processes of their own, each with as many GPUs, or its part of the cores.",
        least=1,
    )
    max_in_flight_bytes: int = flag(
        64 * 2**20,
        "Most bytes of request lines of all batches together that are in an engine at once.",
        least=1,
    )

    max_uploads: int = flag(
        16, "Most uploads that are received at once; one more is refused with status 429.", least=1
    )
    upload_timeout: int = flag(
        60,
        "Seconds after which an upload that sends nothing is given up.",
        least=1,
    )
    allow_origins: str = flag(
        "",
        "Origins whose pages may use the batch API from a browser, such as https://host:port, "
        "separated by commas; * allows any. The server's own origin always may.",
    )
    webhook_hosts: str = flag(
        "",
        "Hosts that a batch may have called when it has ended, separated by commas: "
        "hooks.example.com, hooks.example.com:8443, *.example.com, or * for any.",
    )
    webhook_private: str = flag(
        "no",
        "Whether such a host may have an address of this machine or of a private network, and be "
        "called by http.",
        choices=("no", "yes"),
    )
    webhook_secret_file: str = flag(
        "",
        "File with the secret that calls are signed with (whsec_...); made if it is not there.",
        shown="webhook.secret in --batch-dir",
    )

    users_file: str = flag(
        "",
        "File with the users of the batch API and their keys (docs/batch-api.md). Each sees its "
        "own files and batches only, and has a fair share of the slots; --api-key sees all.",
    )

    def __post_init__(self) -> None:
        FLAGS.check(self)
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise FLAGS.refusal(
                    self, "allow_origins", f"{origin!r} is no origin such as https://host:port"
                )
        if (reason := refusal_of(self.webhook_rules.hosts)) is not None:
            raise FLAGS.refusal(self, "webhook_hosts", reason)

    def users(self) -> Users:
        """Read the users file; without one there are none.

        Raises:
            Refusal: it cannot be read, or a user in it is not valid.
        """
        if not self.users_file:
            return Users()
        try:
            return read_users(Path(self.users_file))
        except ValueError as error:
            raise FLAGS.refusal(self, "users_file", str(error)) from None

    @property
    def webhook_rules(self) -> AllowedHosts:
        """Whom batches may have called."""
        return AllowedHosts.of(self.webhook_hosts, private=self.webhook_private == "yes")

    @property
    def webhook_secret(self) -> Path:
        """The file with the secret."""
        given = self.webhook_secret_file
        return Path(given) if given else self.directory / "webhook.secret"

    @property
    def origins(self) -> list[str]:
        """The entries of ``allow_origins``."""
        return [origin.strip() for origin in self.allow_origins.split(",") if origin.strip()]


FLAGS = Flags(
    BatchSettings,
    "--batch-",
    title="batch service (--schedule-policy blendserve)",
    variables="BLENDSERVE_BATCH_",
)

_chosen: BatchSettings | None = None


def choose(args: argparse.Namespace) -> None:
    """Keep what the command line says for `current`.

    Raises:
        Refusal: a value is out of range or an environment variable is not a number.
    """
    global _chosen
    _chosen = BatchSettings(**FLAGS.given(args))


def current() -> BatchSettings:
    """Return the settings of this process: from its command line, or else the environment.

    Raises:
        Refusal: as `choose`.
    """
    return _chosen or BatchSettings(**FLAGS.given())
