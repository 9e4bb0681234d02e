"""Connections before anybody has shown who they are: heads without an end, silence, answers nobody takes, crowds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from avila_diffusion.server import connections
from avila_diffusion.server.connections import Room, connections_allowed, network_of, protocol_of
from avila_diffusion.server.listening import bind

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /early HTTP/1.1\r\nHost: x\r\n"
Connect = Callable[[], socket.socket]
Listening = Callable[..., AbstractContextManager[Connect]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/ answers, /slow after a while, /early before it has read the body, /read with its size, /endless without an end."""
    path, size, pieces = scope["path"], 0, 1
    if path == "/slow":
        await asyncio.sleep(1.2)
    if path == "/read":
        more = True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if path == "/endless":
        pieces = 4000
    for _ in range(pieces):
        await send(
            {"type": "http.response.body", "body": b"x" * 65536 if pieces > 1 else b"%d" % size, "more_body": True}
        )
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Listening:
    """A server of that application with little patience."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(connections, "STUCK_SECONDS", 0.6)
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)

    @contextlib.contextmanager
    def serve(most: int = 100) -> Iterator[Connect]:
        bound = bind("127.0.0.1", 0)
        given = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False, "loop": "asyncio"}
        config = uvicorn.Config(app, http=protocol_of(Room(most)), timeout_graceful_shutdown=1, **given)  # type: ignore[arg-type]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        made: list[socket.socket] = []

        def connect() -> socket.socket:
            made.append(socket.create_connection(bound.getsockname(), timeout=10))
            return made[-1]

        try:
            until = time.monotonic() + 20
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            yield connect
        finally:
            for one in made:
                one.close()
            server.should_exit = True
            thread.join(timeout=20)
            bound.close()
            assert not thread.is_alive()

    return serve


def answered(connection: socket.socket) -> bytes:
    """What comes of an answer in chunks, to its end; what there is where the connection ends before."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while not found.endswith(b"0\r\n\r\n"):
            block = connection.recv(65536)
            if not block:
                break
            found += block
    return found


def poured(connection: socket.socket, begin: bytes, block: bytes, most: int = 8 << 20) -> int:
    """How many bytes a connection takes before the other end closes it; at most `most`."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        connection.sendall(begin)
        while sent < most:
            connection.sendall(block)
            sent += len(block)
        assert answered(connection) == b""
    return sent


def ended_after(connection: socket.socket, trickle: bytes = b"") -> float:
    """Seconds until the other end closes, while a byte now and then is sent."""
    began = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - began < 8:
        try:
            if trickle:
                connection.sendall(trickle)
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - began


ENDLESS = [
    pytest.param(b"GET / HTTP/1.1\r\nX: ", b"a" * 8192, id="a header"),
    pytest.param(b"GET /", b"a" * 8192, id="a path"),
    pytest.param(b"GET / HTTP/1.1\r\n", b"X: a\r\n" * 1000, id="headers"),
    pytest.param(b"", b"\r\n" * 4096, id="blank lines"),
    pytest.param(b"POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 8192, id="a trailer"),
    pytest.param(b"POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 8192, id="an extension"),
]


@pytest.mark.parametrize(("begin", "block"), ENDLESS)
@pytest.mark.parametrize("before", [b"", GET], ids=["at first", "after an answer"])
def test_what_has_no_end_is_not_kept(listening: Listening, before: bytes, begin: bytes, block: bytes) -> None:
    with listening() as connect:
        connection = connect()
        if before:
            connection.sendall(before)
            assert answered(connection).startswith(b"HTTP/1.1 200")
        assert poured(connection, begin, block) < 8 << 20
        other = connect()
        other.sendall(GET)
        assert answered(other).startswith(b"HTTP/1.1 200")


def test_large_bodies_and_many_calls_pass(listening: Listening) -> None:
    with listening() as connect:
        connection = connect()
        connection.sendall(b"POST /read HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 4_000_000)
        assert b"4000000" in answered(connection)
        connection.sendall(
            b"POST /read HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
        )
        assert b"200000" in answered(connection)
        head = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 400) for n in range(40)) + b"\r\n"
        connection.sendall(head)
        assert answered(connection).startswith(b"HTTP/1.1 200")


SLOW = [
    pytest.param(b"", b"", b"", id="silent"),
    pytest.param(b"", b"GET", b"", id="half a head"),
    pytest.param(b"", b"GET / HTTP/1.1\r\nX: ", b"a", id="a head in drops"),
    pytest.param(GET, b"G", b"", id="a byte after an answer"),
    pytest.param(GET, b"GET /", b"a", id="a head in drops after an answer"),
    pytest.param(POST + b"Content-Length: 1000\r\n\r\n", b"x", b"", id="a byte of a body after its answer"),
    pytest.param(POST + b"Content-Length: 1000\r\n\r\n", b"x", b"x", id="a body in drops after its answer"),
]


@pytest.mark.parametrize(("before", "begin", "trickle"), SLOW)
def test_nobody_is_waited_for_without_an_end(listening: Listening, before: bytes, begin: bytes, trickle: bytes) -> None:
    with listening() as connect:
        connection = connect()
        if before:
            connection.sendall(before)
            assert answered(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(begin)
        assert 0.3 < ended_after(connection, trickle) < 4


def test_patience_is_for_those_who_use_it(listening: Listening) -> None:
    """Calls one after another, with rests that are short each, and one that takes longer than a head may."""
    with listening() as connect:
        connection = connect()
        for path in (b"/", b"/", b"/slow", b"/", b"/", b"/"):
            time.sleep(0.35)
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\n")
            time.sleep(0.1)
            connection.sendall(b"Host: x\r\n\r\n")
            assert answered(connection).startswith(b"HTTP/1.1 200"), path


def test_an_answer_that_nobody_takes(listening: Listening) -> None:
    with listening(2) as connect:
        idle = connect()
        idle.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        time.sleep(2.0)
        idle.settimeout(10)
        assert len(answered(idle)) < 200 << 20  # what the system had taken, and then the end


def test_an_answer_that_is_taken_slowly(listening: Listening) -> None:
    with listening() as connect:
        slow = connect()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        while time.monotonic() - began < 2.0:
            assert slow.recv(262_144)
            time.sleep(0.02)
        assert slow.recv(65536)


def test_a_crowd_is_turned_away_and_others_are_served(listening: Listening) -> None:
    with listening(20) as connect:
        crowd = [connect() for _ in range(60)]
        time.sleep(0.2)
        kept = 0
        for one in crowd:
            with contextlib.suppress(ConnectionError):
                one.sendall(GET)
                answer = answered(one)
                assert answer == b"" or answer.startswith(b"HTTP/1.1 200")  # never uvicorn's own 503
                kept += bool(answer)
        assert kept == 20
        for one in crowd:
            one.close()
        time.sleep(0.2)
        other = connect()
        other.sendall(GET)
        assert answered(other).startswith(b"HTTP/1.1 200")


def test_room() -> None:
    room = Room(200)
    assert sum(room.take("192.0.2.1") for _ in range(200)) == (200 - connections.KEPT) // connections.SHARE
    assert room.take("192.0.2.2")
    taken = [f"198.51.100.{n}" for n in range(200) if room.take(f"198.51.100.{n}")]
    assert not room.take("203.0.113.1")  # these are all that may come from beyond
    near = sum(room.take("127.0.0.1") for _ in range(200))
    assert near == connections.KEPT
    room.give_back("127.0.0.1")
    assert room.take("::1") and not room.take("::1")
    for address in taken:
        room.give_back(address)
    assert room.take("203.0.113.1")


def test_networks_of_addresses() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::2:0:0:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == "::ffff:192.0.2.1" or network_of("::ffff:192.0.2.1") == "::ffff:c000:201"
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("testclient") == "testclient"


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "allowed"),
    [
        (1024, 4096, 1280, 1024),
        (1024, 1024, 1024, 768),
        (256, 512, 512, 256),
        (256, 256, 256, 16),
        (4096, 4096, None, 1024),
        (1024, -1, 1280, 1024),
        (-1, -1, None, 1024),
    ],
)
def test_limits_of_the_system(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, allowed: int
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    now = [soft, hard]
    asked: list[int] = []

    def change(which: int, limits: tuple[int, int]) -> None:
        asked.append(limits[0])
        now[:] = limits

    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", change)
    assert connections_allowed(1024) == allowed
    assert asked == ([] if raised is None else [raised])
