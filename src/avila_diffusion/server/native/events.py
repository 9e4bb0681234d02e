"""What happens to a job, as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...errors import RequestError
from ..hosts import is_loopback
from ..job import Event
from ..problems import QueueFull
from .shapes import PREFIX, job_to_read, service_of

KEEP_ALIVE_SECONDS = 15.0
RETRY_MS = 2000
OWN_NEAR, OWN_FAR = 64, 16
"""Streams that one address may have open: on loopback, and beyond. One that is not read is closed by `connections`."""


async def events(request: Request) -> Response:
    """Follow a job: state, progress, preview, picture, note, and end, after which the stream ends."""
    service = service_of(request)
    job = await job_to_read(request)
    after = _after(request)
    address = request.client.host if request.client else ""
    streams = _Streams.of(request)
    streams.take(address)
    sent = _sent(service.events(job, after))
    left = partial(streams.give_back, address)
    return _Stream(sent, left, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


class _Streams:
    """How many are open, of one application and of each address. most: of all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @classmethod
    def of(cls, request: Request) -> _Streams:
        state = request.app.state
        if not hasattr(state, "streams"):
            state.streams = cls(service_of(request).settings.limits.streams)
        found: _Streams = state.streams
        return found

    def take(self, address: str) -> None:
        """One more. Raises QueueFull."""
        if self._open.total() >= self._most:
            raise QueueFull(
                f"{self._most:,} event streams are open, as many as this server keeps; try again later", 5.0
            )
        most = OWN_NEAR if is_loopback(address) else OWN_FAR
        if self._open[address] >= most:
            raise QueueFull(f"{most} event streams of yours are open, as many as one address may have; close some", 5.0)
        self._open[address] += 1

    def give_back(self, address: str) -> None:
        """One has ended."""
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]


class _Stream(StreamingResponse):
    """Counts itself out however it ends, also where it never began."""

    def __init__(self, content: AsyncIterator[bytes], left: Callable[[], None], **named: object) -> None:
        super().__init__(content, **named)  # type: ignore[arg-type]
        self._left = left

    async def __call__(self, *given: object) -> None:
        try:
            await super().__call__(*given)  # type: ignore[arg-type]
        finally:
            self._left()


async def _sent(followed: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    """The events as lines, a comment where nothing happened for a while: proxies close what is silent."""
    yield f"retry: {RETRY_MS}\n\n".encode()
    waiting: asyncio.Task[Event | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(followed))
            done, _ = await asyncio.wait((waiting,), timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield b": still here\n\n"
                continue
            event, waiting = waiting.result(), None
            if event is None:
                return
            yield lines_of(event)
    finally:
        if waiting is not None:
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
        close = getattr(followed, "aclose", None)
        if close is not None:
            await close()


async def _next(followed: AsyncIterator[Event]) -> Event | None:
    return await anext(followed, None)


def lines_of(event: Event) -> bytes:
    """An event as the stream has it."""
    data = json.dumps(event.data, ensure_ascii=True, separators=(",", ":"))
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n".encode()


def _after(request: Request) -> int:
    """The number of the event that the caller had last."""
    text = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RequestError(f"Last-Event-ID is {text[:40]!r}; it must be the id of an event")
    return int(text)


ROUTES = [Route(f"{PREFIX}/jobs/{{id}}/events", events, methods=["GET"])]
