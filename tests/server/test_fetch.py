"""Pictures by URL: from allowed hosts alone, from where their names pointed once, in bounded time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from avila_diffusion.errors import RequestError
from avila_diffusion.server import fetch as fetching
from avila_diffusion.server.fetch import fetch
from avila_diffusion.server.problems import NotAllowed, TooLarge

OK = b"HTTP/1.1 200 OK\r\n"
Talk = Callable[[socket.socket, bytes], None]


class Server:
    """Answers on an address of loopback, and counts who came. asked: the heads of calls."""

    def __init__(self, talk: Talk, address: str = "127.0.0.1") -> None:
        self.listening = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.listening.bind((address, 0))
        self.listening.listen()
        self.port = int(self.listening.getsockname()[1])
        self.asked: list[bytes] = []
        self._talk = talk
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self.listening.accept()[0]
                with connection, contextlib.suppress(OSError):
                    head = b""
                    while b"\r\n\r\n" not in head:
                        block = connection.recv(65536)
                        if not block:
                            break
                        head += block
                    self.asked.append(head)
                    self._talk(connection, head)


def says(content: bytes) -> Talk:
    return lambda connection, head: connection.sendall(content)


def drips(begin: bytes, drop: bytes) -> Talk:
    def talk(connection: socket.socket, head: bytes) -> None:
        connection.sendall(begin)
        for _ in range(400):
            connection.sendall(drop)
            time.sleep(0.02)

    return talk


@pytest.fixture
def served() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(*given: Any) -> Server:
        try:
            made.append(Server(*given))
        except OSError as error:
            pytest.skip(f"this machine has no such address ({error})")
        return made[-1]

    yield make
    for one in made:
        one.listening.close()


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name means these addresses in turn; which were asked for."""
    asked: list[str] = []

    def look(host: str, port: int, *given: Any, **named: Any) -> list[Any]:
        asked.append(host)
        address = addresses[min(len(asked), len(addresses)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return asked


def test_an_allowed_host(served: Callable[..., Server]) -> None:
    server = served(says(OK + b"Content-Length: 7\r\n\r\npicture, and what does not belong to it"))
    for allowed in ("127.0.0.1", f"127.0.0.1:{server.port}"):
        assert fetch(f"http://127.0.0.1:{server.port}/a/b.png?c=d", [allowed]) == b"picture"
    assert server.asked[0].startswith(b"GET /a/b.png?c=d HTTP/1.1\r\n")


def test_an_allowed_address_of_ipv6(served: Callable[..., Server]) -> None:
    server = served(says(OK + b"\r\npicture"), "::1")
    for allowed in ("::1", "[::1]", f"[::1]:{server.port}"):
        assert fetch(f"http://[::1]:{server.port}/", [allowed]) == b"picture"
    with pytest.raises(NotAllowed):
        fetch(f"http://[::1]:{server.port}/", ["[::1]:9", "::2"])


def test_a_path_of_another_alphabet(served: Callable[..., Server]) -> None:
    server = served(says(OK + b"\r\npicture"))
    assert fetch(f"http://127.0.0.1:{server.port}/ação 1.png?q=ü%20\U0001f600", ["127.0.0.1"]) == b"picture"
    assert server.asked[0].startswith(b"GET /a%C3%A7%C3%A3o%201.png?q=%C3%BC%20%F0%9F%98%80 HTTP/1.1\r\n")


REFUSED = [
    "http://127.0.0.2:{port}/",
    "http://localhost:{port}/",
    "http://127.0.0.1:{port}@127.0.0.2:{port}/",
    "http://127.0.0.1@127.0.0.2:{port}/",
    "http://127.0.0.2:{port}/#127.0.0.1",
    "http://127.0.0.2:{port}\\@127.0.0.1/",
    "http://0:{port}/",
    "http://2130706434:{port}/",
    "http://0x7f.2:{port}/",
    "http://[::ffff:127.0.0.2]:{port}/",
    "ftp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "http://user:password@127.0.0.1:{port}/",
    "http://127.0.0.1:x/",
    "http://[127.0.0.1/",
    "http://",
]


@pytest.mark.parametrize("url", REFUSED)
@pytest.mark.parametrize("hosts", [(), ("127.0.0.1",), ("pictures.example.org",)])
def test_others_are_not_connected_to(served: Callable[..., Server], url: str, hosts: tuple[str, ...]) -> None:
    server = served(says(OK + b"\r\nsecret"), "127.0.0.2")
    with pytest.raises((NotAllowed, RequestError)):
        fetch(url.format(port=server.port), hosts)
    assert server.asked == []


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See", b"307 Temporary", b"308 Permanent"])
def test_redirects_are_not_followed(served: Callable[..., Server], status: bytes) -> None:
    secret = served(says(OK + b"\r\nsecret"), "127.0.0.2")
    target = b"HTTP/1.1 %s\r\nLocation: http://127.0.0.2:%d/\r\nContent-Length: 0\r\n\r\n" % (status, secret.port)
    server = served(says(target))
    with pytest.raises(RequestError, match="redirects are not followed"):
        fetch(f"http://127.0.0.1:{server.port}/", ["127.0.0.1"])
    assert len(server.asked) == 1 and secret.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.0.0.2",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1",
    ],
)
def test_an_allowed_name_that_points_inside(
    served: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    server = served(says(OK + b"\r\nsecret"))
    names(monkeypatch, address)
    with pytest.raises(NotAllowed, match="private network"):
        fetch(f"http://pictures.example.org:{server.port}/", ["pictures.example.org"])
    assert server.asked == []


def test_a_name_is_looked_up_once(served: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """It means a public address when it is looked at, and would mean this machine a moment later."""
    server = served(says(OK + b"\r\nsecret"))
    asked = names(monkeypatch, "203.0.113.7", "127.0.0.1")
    monkeypatch.setattr(fetching, "address_of", lambda text: type("Public", (), {"is_global": True})())
    reached: list[Any] = []

    def connect(address: tuple[str, int], **named: Any) -> Any:
        reached.append(address)
        raise ConnectionRefusedError("not here")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(RequestError, match="not here"):
        fetch(f"http://pictures.example.org:{server.port}/", ["pictures.example.org"])
    assert (asked, reached, server.asked) == (["pictures.example.org"], [("203.0.113.7", server.port)], [])


SLOW = [
    pytest.param(b"", b"H", id="status line"),
    pytest.param(OK, b"X: y\r\n", id="headers"),
    pytest.param(OK + b"X: ", b"y", id="a header"),
    pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
    pytest.param(OK + b"Content-Length: 1000\r\n\r\n", b"x", id="body"),
    pytest.param(OK + b"\r\n", b"x", id="body to the end"),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", id="chunks"),
    pytest.param(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", id="an extension"),
]


@pytest.mark.parametrize(("begin", "drop"), SLOW)
@pytest.mark.parametrize("secure", [False, True])
def test_a_drip_ends(
    served: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, begin: bytes, drop: bytes, secure: bool
) -> None:
    monkeypatch.setattr(fetching, "SECONDS", 0.5)
    server = served(drips(begin, drop))
    began = time.monotonic()
    with pytest.raises(RequestError, match="could not be fetched"):
        fetch(f"http{'s' * secure}://127.0.0.1:{server.port}/", ["127.0.0.1"])
    assert time.monotonic() - began < 2


def test_a_name_that_is_never_found(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(fetching, "SECONDS", 0.3)
    monkeypatch.setattr(fetching, "LOOKUPS", threading.BoundedSemaphore(2))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: let_go.wait(20) and [])
    began = time.monotonic()
    for _ in range(4):
        with pytest.raises(RequestError, match="not there after"):
            fetch("http://pictures.example.org/", ["pictures.example.org"])
    assert time.monotonic() - began < 4
    looking = [thread for thread in threading.enumerate() if thread.name == "lookup"]
    assert 1 <= len(looking) <= 2 and all(thread.daemon for thread in looking)  # which hold up no end
    let_go.set()
    for thread in looking:
        thread.join(timeout=5)


def test_what_is_not_whole_or_too_much(served: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", 100_000)
    for content in (b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf"):
        with pytest.raises(RequestError, match="could not be fetched"):
            fetch(f"http://127.0.0.1:{served(says(OK + content)).port}/", ["127.0.0.1"])
    large = served(drips(OK + b"\r\n", b"x" * 50_000))
    with pytest.raises(TooLarge):
        fetch(f"http://127.0.0.1:{large.port}/", ["127.0.0.1"])
