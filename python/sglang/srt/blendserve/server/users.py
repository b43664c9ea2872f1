"""Who uses the batch API, where several keys are given: each sees what is its own.

A file names the users (``--batch-users-file``):

    [alice]
    key = "sk-..."                  # or key_sha256 = "...", in hexadecimal
    share = 2                       # of the engine's slots, beside others; 1 without it
    max_open_requests = 100000      # requests of its batches without a result; no limit without it

The server's own key (``--api-key``) is the operator's, who sees everything.
"""

from __future__ import annotations

import logging
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("key", "key_sha256", "share", "max_open_requests")
_SHORTEST_KEY = 16


@dataclass(frozen=True, slots=True)
class User:
    """One user.

    Attributes:
        name: as the file has it; files and batches remember it.
        share: of the engine's slots, in proportion to those of others that want some.
        max_open_requests: most requests of its open batches that have no result; None: any number.
    """

    name: str
    share: float = 1.0
    max_open_requests: int | None = None


class Users:
    """The users of a server, by what their keys come to."""

    def __init__(self, by_digest: Mapping[str, User] | None = None) -> None:
        """``by_digest``: by the SHA-256 of their keys, in hexadecimal; without it there is none."""
        self._by_digest = dict(by_digest or {})
        self._by_name = {user.name: user for user in self._by_digest.values()}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_name)

    def of_header(self, authorization: str | None) -> User | None:
        """Return whose key a header ``Authorization`` holds, None if nobody's."""
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not self._by_digest:
            return None
        return self._by_digest.get(_digest(key.strip()))

    def named(self, name: str | None) -> User | None:
        """Return a user by its name; one who is in the file no more has a share like others."""
        return None if name is None else self._by_name.get(name, User(name))

    def over_quota(self, name: str | None, requests: int) -> str | None:
        """Return what a user is told whose open batches have too many ``requests``, None if they
        may have them."""
        user = self.named(name)
        if user is None or user.max_open_requests is None or requests <= user.max_open_requests:
            return None
        return (
            f"Your open batches have {requests:,} requests without a result, and you may have "
            f"{user.max_open_requests:,}. Wait until some are answered, or cancel a batch."
        )


asking: ContextVar[User | None] = ContextVar("asking", default=None)
"""Who has sent the request that is being answered; None: the operator, or nobody, as where the
server does something by itself."""


def owner() -> str | None:
    """Return whose a file or batch is that is made now."""
    user = asking.get()
    return None if user is None else user.name


def may_see(name: str | None) -> bool:
    """Whether who asks may see what is ``name``'s."""
    user = asking.get()
    return user is None or user.name == name


@contextmanager
def asked_by(user: User | None) -> Iterator[None]:
    """Answer a request of ``user`` meanwhile."""
    token = asking.set(user)
    try:
        yield
    finally:
        asking.reset(token)


def read_users(path: Path) -> Users:
    """Read a users file.

    Raises:
        ValueError: it cannot be read, or a user in it is not valid; says which and how to mend it.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
        if path.stat().st_mode & 0o077:
            logger.warning("%s holds keys and can be read by others; chmod 600 it.", path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    by_digest: dict[str, User] = {}
    for name, fields in found.items():
        digest, user = _user(f"{path}: [{name}]", name, fields)
        if digest in by_digest:
            raise ValueError(f"{path}: [{name}] has the key of [{by_digest[digest].name}].")
        by_digest[digest] = user
    if not by_digest:
        raise ValueError(f"{path} names no user; write [name] and a line key = ... for each.")
    return Users(by_digest)


def _user(place: str, name: str, fields: Any) -> tuple[str, User]:
    if not isinstance(fields, dict):
        raise ValueError(f"{place} is no table; write [{name}] on a line of its own.")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{place}: a name has letters, digits, '_', '.' and '-', 64 at most.")
    for field in fields:
        if field not in _FIELDS:
            raise ValueError(f"{place}: {field} is unknown; there are {', '.join(_FIELDS)}.")
    share, most = fields.get("share", 1), fields.get("max_open_requests")
    if not _is_number(share) or not 0 < share < math.inf:
        raise ValueError(f"{place}: share is {share!r}; it must be a number above 0.")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ValueError(f"{place}: max_open_requests is {most!r}; it must be 1 or more.")
    return _key_digest(place, fields), User(name, float(share), most)


def _key_digest(place: str, fields: dict[str, Any]) -> str:
    key, digest = fields.get("key"), fields.get("key_sha256")
    if (key is None) == (digest is None):
        raise ValueError(f"{place}: give key, or key_sha256, and not both.")
    if digest is not None:
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest.lower()):
            raise ValueError(f"{place}: key_sha256 must be 64 hexadecimal digits.")
        return digest.lower()
    if not isinstance(key, str) or len(key) < _SHORTEST_KEY or key != key.strip():
        raise ValueError(
            f"{place}: key must be a text of {_SHORTEST_KEY} characters or more, without blanks "
            "around it; openssl rand -hex 24 makes one."
        )
    return _digest(key)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()
