"""The server as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from ..errors import AvilaError
from .app import create_app
from .connections import Room, connections_allowed, protocol_of
from .hosts import is_loopback
from .metrics import Metrics
from .service import Service
from .settings import Settings

log = logging.getLogger("avila.server")

BACKLOG = 512
KEEP_ALIVE_SECONDS = 15
CLOSING_SECONDS = 2
"""That answers which are being sent have, once everything else has ended."""
ENDING_SECONDS = 10.0
"""That a second signal leaves for the worker to be gone."""


class CannotListen(AvilaError):
    """The address cannot be bound."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises CannotListen."""
    bare = host.strip().strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{host} is no address of this machine ({error}); try --host 127.0.0.1") from None
    family, kind, protocol, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    if is_loopback(bare) and not is_loopback(str(address[0])):
        raise CannotListen(f"{host} means {address[0]} here, which is not loopback; try --host 127.0.0.1")
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform == "win32":  # there SO_REUSEADDR would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise CannotListen(_why_not(host, port, error)) from None
    return listening


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", -1)):
        return f"port {port} of {host} is taken, perhaps by another server; stop that one, or give --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} may not be used by this user; give --port with a number from 1024 on"
    return f"{host}:{port} cannot be used ({error.strerror or error}); give --host and --port"


def address_of_page(listening: socket.socket, settings: Settings) -> str:
    """Where a browser on this machine finds the page."""
    address, port = listening.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        address = "127.0.0.1"
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def serve(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until a signal comes, then let running jobs end; a second signal ends them too. ready: called once it answers.

    Raises an AvilaError where the service cannot start.
    """
    asyncio.run(_serve(settings, listening, ready))


async def _serve(settings: Settings, listening: socket.socket, ready: Callable[[], None]) -> None:
    ends = _Ends()
    with ends.listening():
        service = Service(settings, Metrics())
        try:
            await service.start()
        except BaseException:
            listening.close()
            await service.stop(0)
            raise
        server = _Server(_config(settings, create_app(settings, service, running=True)), ready)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            await _first(serving, ends.first)
            await _drain(service, ends)
        finally:
            server.should_exit = True
            server.force_exit = ends.second.is_set()
            await serving


async def _drain(service: Service, ends: _Ends) -> None:
    """Let what runs end, as long as there is time and nobody asks twice."""
    service.drain()
    running = len(service.running())
    log.info("ending; %d running jobs have %g s, what waits is kept", running, service.settings.drain)
    stopping = asyncio.ensure_future(service.stop())
    await _first(stopping, ends.second)
    if stopping.done():
        stopping.result()
        return
    log.warning("ending now; the jobs go on when the server is started again")
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError, TimeoutError):
        await stopping
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ENDING_SECONDS):
            await service.stop(0)


async def _first(work: asyncio.Future[Any], event: asyncio.Event) -> None:
    """Waits until the work is done or the event has come."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    most = connections_allowed(settings.limits.connections)
    if most < settings.limits.connections:
        log.warning("the system allows %d connections at once (ulimit -n), fewer than there may be", most)
    return uvicorn.Config(
        app,
        lifespan="off",  # the service is started before and stopped after, so that its errors are told in one line
        loop="asyncio",
        http=protocol_of(Room(most)),
        ws="none",
        log_config=None,
        access_log=False,  # paths and queries are the callers' business
        server_header=False,
        limit_concurrency=2 * most,  # never reached: its refusal is in nobody's dialect
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
    )


class _Server(uvicorn.Server):
    """uvicorn's, without its signals, and with a word when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Ends:
    """The signals that ask for the end: the first lets running jobs end, the second does not."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ask(self) -> None:
        """One of them came."""
        (self.second if self.first.is_set() else self.first).set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, as long as this is the main thread; what was ignored stays so, as nohup leaves it."""
        main = threading.current_thread() is threading.main_thread()
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if main else ()
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._came) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self.ask)
