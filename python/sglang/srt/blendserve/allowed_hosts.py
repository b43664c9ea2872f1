"""Which hosts a batch may have called, and from which addresses nobody may be.

A server that calls what its users name must not become their way into its network: hosts are those
of an allow-list, and addresses public ones unless the operator says otherwise. Addresses are
checked where the connection is made, after the name was looked up, so that a name cannot lead
elsewhere the second time.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LONGEST_URL = 2000

_NAME = re.compile(r"[a-z0-9._:%-]+", re.ASCII)
_NUMBERS = re.compile(r"(0x[0-9a-f]+|[0-9]+)(\.(0x[0-9a-f]+|[0-9]+))*\.?", re.ASCII)
_UNICAST = ipaddress.ip_network("2000::/3")
_TUNNELS = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))


class NotAllowed(ValueError):
    """An address that must not be called; the message says why."""


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """Hosts that may be called.

    Attributes:
        hosts: names, ``*.example.com`` for all below one, ``*`` for any; with a port
            (``hooks.example.com:8443``) for that port alone.
        private: whether addresses may be of this machine or a private network, and ``http``.
    """

    hosts: tuple[str, ...] = ()
    private: bool = False

    @classmethod
    def of(cls, hosts: str, *, private: bool) -> AllowedHosts:
        """Return those of a list of hosts, separated by commas."""
        names = tuple(name.strip().lower() for name in hosts.split(",") if name.strip())
        return cls(names, private)

    def check(self, url: str, *, longest: int = LONGEST_URL) -> None:
        """Check an address without looking it up.

        Args:
            longest: most characters that it may have.

        Raises:
            NotAllowed: it is none, or must not be called.
        """
        if not self.hosts:
            raise NotAllowed("no host is allowed")
        if len(url) > longest:
            raise NotAllowed(f"it is longer than {longest:,} characters")
        if not url.isprintable() or " " in url:
            raise NotAllowed("it is no address of the web")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise NotAllowed(f"it is no address of the web ({error})") from error
        if not host or parts.username is not None or parts.fragment:
            raise NotAllowed("it must be https://HOST/PATH, without a user or a fragment")
        if parts.scheme != "https" and not (self.private and parts.scheme == "http"):
            raise NotAllowed("it must begin with https://")
        default = 443 if parts.scheme == "https" else 80
        if not any(_fits(name, host, port or default) for name in self.hosts):
            raise NotAllowed(f"{host} is none of the hosts that are allowed")
        if not _NAME.fullmatch(host):
            raise NotAllowed(f"{host} is no name of a host; a name in other letters is xn--...")
        if (literal := _address(host)) is not None:
            self.check_address(literal)
        elif _NUMBERS.fullmatch(host):  # not for a library to guess what it may mean
            raise NotAllowed(f"{host} is neither a name nor an address")

    def check_address(self, address: str) -> None:
        """Check an address that a name leads to.

        Raises:
            NotAllowed: it is of this machine or a private network, and that is not allowed.
        """
        if not self.private and not _is_public(address.partition("%")[0]):
            raise NotAllowed(f"{address} is no public address")

    def socket_for(self, address: tuple[Any, ...]) -> socket.socket:
        """Open a socket for an address, whatever name or spelling has led to it.

        It is what `aiohttp.TCPConnector` takes as ``socket_factory``.

        Args:
            address: as `socket.getaddrinfo` lists them.

        Raises:
            OSError: it must not be called.
        """
        family, kind, protocol, _, target = address
        try:
            self.check_address(str(target[0]))
        except NotAllowed as error:
            raise OSError(errno.EACCES, str(error)) from error
        return socket.socket(family, kind, protocol)


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        # Other forms that lead to an address inside begin with something else.
        elif found not in _UNICAST or any(found in network for network in _TUNNELS):
            return False
    return found.is_global and not found.is_multicast


def _fits(pattern: str, host: str, port: int) -> bool:
    name, colon, wanted = pattern.rpartition(":")
    if not colon:
        name, wanted = pattern, ""
    if wanted and int(wanted) != port:
        return False
    if not wanted and port not in (80, 443) and name != "*":
        return False
    if name == "*":
        return True
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _address(host: str) -> str | None:
    """Return a host that is an address already, None if it is a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def refusal_of(hosts: Sequence[str]) -> str | None:
    """Return what is wrong with entries of an allow-list, None if nothing is."""
    for one in hosts:
        name, colon, port = one.rpartition(":")
        name = name if colon else one
        if colon and not (port.isdigit() and 0 < int(port) < 65536):
            return f"{one!r} has no port behind its colon"
        if name != "*" and ("*" in name.removeprefix("*.") or "/" in name or not name):
            return f"{one!r} is no host such as www.example.com, *.example.com or *"
    return None
