"""Which names and addresses a call may have in its Host header: what keeps web pages out that rebind their own name.

A page of evil.example whose name is made to point at 127.0.0.1 still sends `Host: evil.example`. So a Host is taken only
where no stranger can own it: loopback, the address that was bound, and the names that the server was told.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

from .settings import Settings

Address = IPv4Address | IPv6Address

_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}))(?::(?P<port>[0-9]{1,5}))?", re.A
)
_LOOPBACK_NAME = "localhost"


def split_authority(text: str) -> tuple[str, int | None] | None:
    """`host:port` as (host in lower case without brackets, port or None); None for whatever is no authority.

    >>> split_authority("[::1]:7860")
    ('::1', 7860)
    >>> split_authority("user@127.0.0.1") is None
    True
    """
    match = _AUTHORITY.fullmatch(text.lower())
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 0 < port < 65536:
        return None
    return match["host"].strip("[]"), port


def address_of(host: str) -> Address | None:
    """The address that a host is written as, None for a name. An IPv4 address in IPv6 writing is the former."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether this is loopback however it is written: 127.0.0.1, localhost, ::1, [::1], ::ffff:127.0.0.1."""
    bare = host.strip().lower().strip("[]")
    address = address_of(bare)
    return address.is_loopback if address is not None else _plain_name(bare) == _LOOPBACK_NAME


class Hosts:
    """The Host headers that a server answers to."""

    def __init__(self, settings: Settings) -> None:
        bound = settings.host.strip().lower().strip("[]")
        self._bound = address_of(bound)
        self._everywhere = self._bound is not None and self._bound.is_unspecified
        named = [split_authority(name.strip()) for name in settings.hosts]
        names = {host for host, _ in filter(None, named)} | ({bound} if self._bound is None else set())
        self._addresses = {address for name in names if (address := address_of(name)) is not None}
        self._names = {_plain_name(name) for name in names}

    def allow(self, host: str) -> bool:
        """Whether a host as `split_authority` gives it may stand there.

        Where every address of the machine was bound any literal address may: rebinding needs a name.
        """
        address = address_of(host)
        if address is None:
            name = _plain_name(host)
            return name == _LOOPBACK_NAME or name in self._names
        return address.is_loopback or self._everywhere or address == self._bound or address in self._addresses


def _plain_name(name: str) -> str:
    """Without the dot that ends a full name."""
    return name.removesuffix(".")
