"""Pictures fetched by URL, from hosts that the operator allowed, and from nowhere else.

The address is looked up once and that one is connected to, so that a name cannot mean another machine a moment later; a
redirect is refused; at most ten seconds and 20 MB.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from ..errors import RequestError
from .problems import NotAllowed, TooLarge

SECONDS = 10.0
MAX_BYTES = 20 * 1000 * 1000


def fetch(url: str, hosts: Collection[str]) -> bytes:
    """What lies at the URL. hosts: names, or name:port, that are allowed; an address of a private network only where the
    address itself is in it. Raises NotAllowed, RequestError, TooLarge."""
    if not hosts:
        raise NotAllowed("this server fetches nothing; give the picture itself, in base64")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise RequestError("the URL of the picture cannot be read; give one such as https://host/picture.png") from None
    if parts.scheme not in ("http", "https") or parts.username or parts.password:
        raise NotAllowed(
            "a picture is fetched by http or https, without a user; give such a URL, or the picture in base64"
        )
    if host not in hosts and f"{host}:{port}" not in hosts:
        raise NotAllowed(f"pictures are not fetched from {host[:80]!a}; give the picture itself, in base64")
    address = _address(host, port)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return _get(address, host, port, target, secure=parts.scheme == "https")
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(f"the picture could not be fetched from {host} ({error}); give it in base64") from None


def _address(host: str, port: int) -> str:
    """The address that is connected to."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise RequestError(f"{host} was not found ({error}); give the picture in base64") from None
    address = str(found[0][4][0])
    if address != host and not ipaddress.ip_address(address.partition("%")[0]).is_global:
        raise NotAllowed(
            f"{host} is an address of a private network; allow the address itself, or give the picture in base64"
        )
    return address


def _get(address: str, host: str, port: int, target: str, *, secure: bool) -> bytes:
    until = time.monotonic() + SECONDS
    with socket.create_connection((address, port), timeout=SECONDS) as plain:
        stream = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        with stream:
            connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
            connection.sock = stream
            connection.request("GET", target, headers={"Accept": "image/*", "Connection": "close"})
            response = connection.getresponse()
            if response.status != 200:
                raise RequestError(f"{host} answered {response.status}, not 200; redirects are not followed")
            found = bytearray()
            while block := response.read(65536):
                found += block
                if len(found) > MAX_BYTES:
                    raise TooLarge(f"the picture at {host} has more than {MAX_BYTES // 1_000_000} MB")
                if time.monotonic() > until:
                    raise TimeoutError("it took longer than 10 seconds")
            return bytes(found)
