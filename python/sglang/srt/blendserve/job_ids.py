"""The mark that says a request belongs to an offline job, carried by its request id.

A request id is the one field that already travels from the client to the scheduler and back in
every entry point of SGLang, so the mark needs no change to any message type:

    blendserve-<job>-<seal>-<total>-<index, 8 digits>[_<anything SGLang appends>]

The index has a fixed width because SGLang aborts by *prefix* (``rid.startswith``): without it,
aborting request 1 would also abort requests 10 to 19. For the same reason `job_prefix` ends in a
dash and aborts one whole job and nothing else.

The seal follows from the job's name and a key that this process made at its start and shows nobody:
an id that a client made up is not taken for one of ours (`is_sealed`). Only the process that makes
ids needs to tell, before they reach the scheduler; there the form alone counts (`parse_rid`), so
that schedulers on several machines need no common secret.
"""

from __future__ import annotations

import hmac
import re
import secrets
import uuid
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

_MARK = "blendserve-"
_RID = re.compile(_MARK + r"([0-9A-Za-z_]{1,64})-([0-9a-f]{16})-([0-9]{1,9})-([0-9]{8})(?![0-9])")
_KEY = secrets.token_bytes(32)
_JOB = re.compile(r"[0-9A-Za-z_]{1,64}")

MAX_REQUESTS = 10**8
"""Requests in one job: what the index's eight digits can count."""


@dataclass(frozen=True, slots=True)
class OfflineMark:
    """What a marked request id says: its job, how many requests the job has (0: not known yet)
    and which of them this one is (from 0)."""

    job: str
    total: int
    index: int


def new_job() -> str:
    """Return an unguessable job name."""
    return uuid.uuid4().hex


def make_rid(job: str, total: int, index: int) -> str:
    """Return the request id of request ``index`` of ``total`` in ``job``.

    Raises:
        ValueError: the job's name has other characters than letters, digits and underscores or is
            longer than 64, or the index does not lie below ``total`` (when that is not 0).
    """
    if not _JOB.fullmatch(job):
        raise ValueError(f"job name {job!r}: use 1 to 64 letters, digits or underscores")
    if not 0 <= index < (total or MAX_REQUESTS) or not 0 <= total <= MAX_REQUESTS:
        raise ValueError(f"request index {index} of {total}: it must lie in [0, total)")
    return f"{job_prefix(job)}{_seal(job)}-{total}-{index:08d}"


def job_prefix(job: str) -> str:
    """Return the prefix shared by all request ids of ``job``; aborting it aborts the job."""
    return f"{_MARK}{job}-"


def reaches_offline(rid: str) -> bool:
    """Return whether SGLang, which aborts by prefix, could take ``rid`` for offline requests: it
    begins like one of theirs, or one of theirs begins with it."""
    return rid.startswith(_MARK) or _MARK.startswith(rid)


def is_sealed(rid: str) -> bool:
    """Return whether this process made ``rid``, or the id that it begins with, by `make_rid`."""
    match = _RID.match(rid)
    return match is not None and hmac.compare_digest(match[2], _seal(match[1]))


def sealed_again(rid: str) -> str:
    """Return the request id of another process of ours with this process's seal.

    Raises:
        ValueError: it is not one of `make_rid`.
    """
    mark = parse_rid(rid)
    if mark is None:
        raise ValueError(f"request id {rid!r}: it has no mark of an offline job")
    return make_rid(mark.job, mark.total, mark.index)


def parse_rid(rid: str) -> OfflineMark | None:
    """Return the mark that ``rid`` carries, or None when it is an online request."""
    match = _RID.match(rid)
    if match is None:
        return None
    return OfflineMark(match[1], int(match[3]), int(match[4]))


@lru_cache(maxsize=1024)
def _seal(job: str) -> str:
    return blake2b(job.encode(), key=_KEY, digest_size=8).hexdigest()
