"""Pictures fetched by URL, from hosts that the operator allowed, and from nowhere else.

The address is looked up once and that one is connected to, so that a name cannot mean another machine a moment later; a
redirect is refused; at most ten seconds in all, and 20 MB.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from ..errors import RequestError
from .hosts import address_of
from .problems import NotAllowed, TooLarge

SECONDS = 10.0
MAX_BYTES = 20 * 1000 * 1000
BLOCK = 65536
LOOKUPS = threading.BoundedSemaphore(16)
"""Names that are looked up at once. Nothing can end such a call, and one may take minutes."""
_PLAIN = "%/?&=:@+,;~!$'()*[]"
"""Of a path and query, beside letters and digits: what stands there as it is."""


@dataclass(frozen=True)
class _Place:
    """Where a picture is. host: a name or an address without brackets. target: path and query."""

    host: str
    port: int
    target: str
    secure: bool


def fetch(url: str, hosts: Collection[str]) -> bytes:
    """What lies at the URL. hosts: names, or name:port, that are allowed; an address of a private network only where the
    address itself is in it; of IPv6 with or without brackets. Raises NotAllowed, RequestError, TooLarge."""
    if not hosts:
        raise NotAllowed("this server fetches nothing; give the picture itself, in base64")
    place = _allowed(url, hosts)
    until = time.monotonic() + SECONDS
    try:
        return _get(_address(place, until), place, until)
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() >= until
        told = f"it was not there after {SECONDS:g} seconds" if late else " ".join(str(error).split())[:160]
        raise RequestError(f"the picture could not be fetched from {place.host} ({told}); give it in base64") from None


def _allowed(url: str, hosts: Collection[str]) -> _Place:
    """Raises NotAllowed for a URL of another kind or another host."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RequestError("the URL of the picture cannot be read; give one such as https://host/picture.png") from None
    if parts.scheme not in ("http", "https") or parts.username or parts.password:
        raise NotAllowed(
            "a picture is fetched by http or https, without a user; give such a URL, or the picture in base64"
        )
    written = f"[{host}]" if ":" in host else host
    if not {host, written, f"{written}:{port}"} & set(hosts):
        raise NotAllowed(f"pictures are not fetched from {host[:80]!a}; give the picture itself, in base64")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Place(host, port, quote(target, safe=_PLAIN, errors="replace"), parts.scheme == "https")


def _address(place: _Place, until: float) -> str:
    """The address that is connected to."""
    try:
        address = _looked_up(place, until)
    except TimeoutError:
        raise
    except (OSError, UnicodeError) as error:
        raise RequestError(f"{place.host} was not found ({error}); give the picture in base64") from None
    found = address_of(address.partition("%")[0])
    if address != place.host and (found is None or not found.is_global):
        raise NotAllowed(
            f"{place.host} is an address of a private network; allow the address itself, or give the picture in base64"
        )
    return address


def _looked_up(place: _Place, until: float) -> str:
    """What the system says, in a thread that nobody waits for longer than until then, nor when the server ends."""
    told: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
    lookups = LOOKUPS

    def look() -> None:
        try:
            told.put(str(socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[0][4][0]))
        except Exception as error:
            told.put(error)
        finally:
            lookups.release()

    if not lookups.acquire(timeout=max(until - time.monotonic(), 0.0)):
        raise TimeoutError("too many names are looked up")
    threading.Thread(target=look, name="lookup", daemon=True).start()
    try:
        found = told.get(timeout=max(until - time.monotonic(), 0.001))
    except queue.Empty:
        raise TimeoutError("the name is not found in time") from None
    if isinstance(found, Exception):
        raise found
    return found


def _get(address: str, place: _Place, until: float) -> bytes:
    with _connected(address, place, until) as stream:
        connection = http.client.HTTPConnection(place.host, place.port, timeout=SECONDS)
        connection.sock = stream
        connection.request("GET", place.target, headers={"Accept": "image/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            raise RequestError(f"{place.host} answered {response.status}, not 200; redirects are not followed")
        found = bytearray()
        while block := response.read(BLOCK):
            found += block
            if len(found) > MAX_BYTES:
                raise TooLarge(f"the picture at {place.host} has more than {MAX_BYTES // 1_000_000} MB")
        if response.length or time.monotonic() >= until:
            raise ConnectionError("its end is missing")
        return bytes(found)


@contextlib.contextmanager
def _connected(address: str, place: _Place, until: float) -> Iterator[socket.socket]:
    """A connection that ends then, whatever is read from it: a time-out of each read alone could be put off for ever."""
    with socket.create_connection((address, place.port), timeout=max(until - time.monotonic(), 0.001)) as plain:
        stream = plain
        if place.secure:  # the handshake comes below: it takes its time too
            context = ssl.create_default_context()
            stream = context.wrap_socket(plain, server_hostname=place.host, do_handshake_on_connect=False)
        timer = threading.Timer(max(until - time.monotonic(), 0.0), _shut, [stream])
        timer.daemon = True
        timer.start()
        try:
            with stream:
                if isinstance(stream, ssl.SSLSocket):
                    stream.do_handshake()
                yield stream
        finally:
            timer.cancel()


def _shut(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not SSLSocket's own, which takes the state away under whoever reads
        socket.socket.shutdown(stream, socket.SHUT_RDWR)
