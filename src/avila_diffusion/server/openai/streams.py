"""A job as server-sent events in OpenAI's shape: some previews of each picture, each picture, or why there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import AvilaError
from ...sizes import finished_size
from ..job import Event, Job, Problem
from ..problems import Draining, status_of
from . import answers
from .errors import error_content, failed_content
from .fields import Asked
from .flights import Flight, Flights, gone

if TYPE_CHECKING:
    from ..service import Service

PING_SECONDS = 15.0


class Stream(Response):
    """What one call is sent of a job, until it has ended or the caller is gone. kind: "image_generation" or "image_edit"."""

    media_type = "text/event-stream"

    def __init__(self, flights: Flights, flight: Flight, request: Request, job: Job, asked: Asked, kind: str) -> None:
        super().__init__(headers={"x-request-id": job.id, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._flights = flights
        self._service: Service = flights.service
        self._flight = flight
        self._request = request
        self._job = job
        self._asked = asked
        self._kind = kind
        self._shown: dict[int, int] = {}  # previews that were sent, by picture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; whatever happens, its place is given back."""
        delivered = False
        left = asyncio.ensure_future(gone(self._request))
        try:
            with suppress(OSError):  # the caller's end of the connection is closed
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for chunk in self._chunks(left):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                delivered = not left.done()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            left.cancel()
            self._flights.streams -= 1
            self._flights.leave(self._flight, delivered=delivered)

    async def _chunks(self, left: asyncio.Future[None]) -> AsyncIterator[bytes]:
        try:
            async for event in _watched(self._service.events(self._job), left):
                if event is None:
                    yield b": still here\n\n"
                    continue
                for name, data in await self._told(self._job, event):
                    yield await asyncio.to_thread(_sse, name, data)  # megabytes of base64
            if not self._job.ended and not left.done():
                raise Draining("the server stops; the job goes on when it is started again")
        except AvilaError as error:
            yield _sse("error", {"error": error_content(error, status_of(error))})

    async def _told(self, job: Job, event: Event) -> list[tuple[str, Mapping[str, Any]]]:
        """What is sent of an event: names and data."""
        if event.kind == "preview" and self._wanted(job, event.data["image"]):
            return [await self._partial(job, event.data)]
        if event.kind == "picture":
            return [await self._completed(job, event.data["index"])]
        if event.kind == "end" and event.data["state"] != "done":
            return [("error", {"error": _ending(event.data)})]
        return []

    def _wanted(self, job: Job, image: int) -> bool:
        """Whether this preview is one of the few, evenly over the steps."""
        sent, most = self._shown.get(image, 0), self._asked.partial
        if sent >= most:
            return False
        progress = job.progress
        due = progress.step * (most + 1) >= (sent + 1) * progress.of if progress.of else True
        if due:
            self._shown[image] = sent + 1
        return due

    async def _partial(self, job: Job, data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        name = f"{self._kind}.partial_image"
        size = "x".join(map(str, finished_size(job.request)))
        return name, {
            "type": name,
            "b64_json": await answers.preview(data["data"], self._asked),
            "partial_image_index": self._shown[data["image"]] - 1,
            "created_at": int(job.created),
            **answers.traits(self._asked, None),
            "size": size,
        }

    async def _completed(self, job: Job, index: int) -> tuple[str, Mapping[str, Any]]:
        name = f"{self._kind}.completed"
        result = next(one for one in job.results if one.index == index)
        return name, {
            "type": name,
            "b64_json": await answers.encoded(self._service, job, index, self._asked),
            "created_at": int(job.created),
            **answers.traits(self._asked, result),
            "seed": result.seed,
            "usage": await answers.usage(job),
        }


def _ending(data: Mapping[str, Any]) -> dict[str, Any]:
    """Why a job ended without its pictures."""
    if data.get("problem"):
        return failed_content(Problem(**data["problem"]))
    return {"message": "the job was cancelled", "type": "server_error", "param": None, "code": "cancelled"}


async def _watched(events: AsyncIterator[Event], left: asyncio.Future[None]) -> AsyncIterator[Event | None]:
    """The events; None from time to time where there are none, so that a gone caller is noticed by proxies too."""
    following = events.__aiter__()
    coming: asyncio.Future[Event] | None = None
    try:
        while not left.done():
            coming = asyncio.ensure_future(_next(following)) if coming is None else coming
            await asyncio.wait((coming, left), timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                if not left.done():
                    yield None
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield event
    finally:
        if coming is not None:
            coming.cancel()


async def _next(events: AsyncIterator[Event]) -> Event:
    return await events.__anext__()


def _sse(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
