"""What happens to a job, as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...errors import RequestError
from ..job import Event
from ..problems import QueueFull
from .shapes import PREFIX, job_to_read, service_of

KEEP_ALIVE_SECONDS = 15.0
RETRY_MS = 2000


async def events(request: Request) -> Response:
    """Follow a job: state, progress, preview, picture, note, and end, after which the stream ends."""
    service = service_of(request)
    job = await job_to_read(request)
    after = _after(request)
    streams = _Streams.of(request)
    if streams.open >= service.settings.limits.streams:
        raise QueueFull(f"{streams.open:,} event streams are open, as many as this server keeps; close some", 5.0)
    streams.open += 1
    sent = _sent(service.events(job, after))
    return _Stream(sent, streams, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


class _Streams:
    """How many are open, of one application."""

    def __init__(self) -> None:
        self.open = 0

    @classmethod
    def of(cls, request: Request) -> _Streams:
        state = request.app.state
        if not hasattr(state, "streams"):
            state.streams = cls()
        found: _Streams = state.streams
        return found


class _Stream(StreamingResponse):
    """Counts itself out however it ends, also where it never began."""

    def __init__(self, content: AsyncIterator[bytes], streams: _Streams, **named: object) -> None:
        super().__init__(content, **named)  # type: ignore[arg-type]
        self._streams = streams

    async def __call__(self, *given: object) -> None:
        try:
            await super().__call__(*given)  # type: ignore[arg-type]
        finally:
            self._streams.open -= 1


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
