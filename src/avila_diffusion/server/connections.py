"""Connections, and what they may cost before anybody has shown who they are: so many, so large a head, so much patience.

uvicorn bounds none of it: it takes every connection, its parser keeps a head of any length, and one byte stops its timer of
idle connections.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .hosts import is_loopback

HEAD_BYTES = 65536
"""That may come without a whole head, or any of a body, among them: heads, trailers, extensions of chunks, blank lines."""
HEAD_SECONDS = 30.0
"""In which a connection that waits for a call has to send the whole head of one."""
STUCK_SECONDS = 60.0
"""In which something of an answer has to be taken by whoever asked for it."""
LOOK_SECONDS = 5.0
"""Between two looks at a connection."""
SHARE = 8
"""An address beyond loopback may have one in so many of all connections."""
KEPT = 16
"""Connections that are kept for loopback, where proxies and those who watch the server are."""
FILES = 256
"""Open files that are kept for everything but connections."""


class Room:
    """Who has how many connections. most: at once, of all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._beyond = max(most - KEPT, 1)
        self._share = max(self._beyond // SHARE, 1)
        self._near = 0
        self._far: Counter[str] = Counter()

    def take(self, address: str) -> bool:
        """Whether there is room for one more of this address; then it is counted, until `give_back`."""
        far = self._far.total()
        if self._near + far >= self._most:
            return False
        if is_loopback(address):
            self._near += 1
            return True
        network = network_of(address)
        if far >= self._beyond or self._far[network] >= self._share:
            return False
        self._far[network] += 1
        return True

    def give_back(self, address: str) -> None:
        """One is closed."""
        if is_loopback(address):
            self._near -= 1
            return
        network = network_of(address)
        self._far[network] -= 1
        if self._far[network] <= 0:
            del self._far[network]


def network_of(address: str) -> str:
    """What is counted as one caller: an address, of IPv6 the network of 64 bits that one subscriber has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def connections_allowed(wanted: int) -> int:
    """How many connections the system lets this process hold, at most `wanted`; its limit of open files is raised to that."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else max(min(wanted, soft - FILES), KEPT)


def protocol_of(room: Room) -> type[asyncio.Protocol]:
    """What uvicorn is to make of each connection."""

    class Bounded(Connection):
        """One of this server."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._room = room

    return Bounded


class Connection(HttpToolsProtocol):
    """One connection, looked at every few seconds: whether it still sends, and takes what it is sent."""

    _room: Room

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """There is one more, unless there is no room."""
        super().connection_made(transport)
        self._bare = 0
        self._moved = False
        self._waits_since = self._took_at = self.loop.time()
        self._unsent = 0
        self._looking: asyncio.TimerHandle | None = None
        self._address = self.client[0] if self.client else ""
        self._counted = self._room.take(self._address)
        if self._counted:
            self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        else:  # without an answer, which would cost what there is no room for
            self.connections.discard(self)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._looking is not None:
            self._looking.cancel()
        if self._counted:
            self._counted = False
            self._room.give_back(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came. What is neither a whole head nor any of a body is counted."""
        self._moved = False
        super().data_received(data)
        self._bare = 0 if self._moved else self._bare + len(data)
        if self._bare > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """The first byte of a call."""
        self._waits_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._moved = True
        self._waits_since = self.loop.time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body is."""
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is."""
        self._moved = True
        super().on_message_complete()

    def resume_writing(self) -> None:
        """Whoever asked took something."""
        self._took_at = self.loop.time()
        super().resume_writing()

    def _look(self) -> None:
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent or not unsent:
            self._took_at = now
        self._unsent = unsent
        if self.cycle is not None and not self.cycle.response_complete:
            self._waits_since = now
        if now - self._took_at > STUCK_SECONDS:
            self.transport.abort()
        elif not unsent and now - self._waits_since > HEAD_SECONDS:
            self.transport.close()
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
