"""Calls that wait for jobs: equal ones share a job, and a job whose callers all went away ends.

OpenAI's clients give up after their time-out and send the same call again, up to three in all. The job that was begun for the
first serves the others too, if they come while it is drawn or within a few seconds after the caller was gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from ...errors import AvilaError
from ..job import Job
from ..problems import QueueFull

if TYPE_CHECKING:
    from ..service import Service

GRACE = 12.0
"""Seconds that a job goes on without anybody who waits for it: OpenAI's own clients come back within eight at most."""
RETRY_HEADER = "x-stainless-retry-count"
"""In which OpenAI's clients say that they have asked before."""


class CallerGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Flight:
    """A job and who waits for it. keep: it is drawn to its end whoever waits."""

    key: tuple[str, str]
    job: asyncio.Task[Job]
    keep: bool = False
    waiting: int = 0
    delivered: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)


class Flights:
    """The calls that are waiting now. For one event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.streams = 0
        self._flights: dict[tuple[str, str], list[Flight]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def board(
        self, key: tuple[str, str], make: Callable[[], Awaitable[Job]], *, shared: bool, keep: bool = False
    ) -> Flight:
        """A place on the job for a call, to be given back by `leave`. key: client and digest of the call. make: submits it.

        shared: an equal call that somebody waits for serves this one too: the picture is the same one, as its seed was
        given, or the call says that it repeats another. One that nobody waits for any more serves in any case.
        """
        found = None if keep else self._found(key, shared)
        if found is None:
            found = Flight(key, asyncio.ensure_future(_awaited(make)), keep)
            found.job.add_done_callback(self._submitted(found))
            self._flights.setdefault(key, []).append(found)
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        found.waiting += 1
        return found

    def leave(self, flight: Flight, *, delivered: bool) -> None:
        """A call has its answer, or is gone."""
        flight.waiting -= 1
        flight.delivered |= delivered
        if flight.waiting:
            return
        if flight.delivered or flight.keep:
            self._forget(flight)
        else:
            flight.timer = asyncio.get_running_loop().call_later(GRACE, self._expire, flight)

    def stream(self) -> None:
        """One more stream; `streams` is to be lowered when it ends. Raises QueueFull."""
        if self.streams >= self.service.settings.limits.streams:
            raise QueueFull(f"{self.streams} streams are open, and no more are opened; try again later", 5.0)
        self.streams += 1

    def _found(self, key: tuple[str, str], shared: bool) -> Flight | None:
        flights = [one for one in self._flights.get(key, ()) if not one.keep]
        left = [one for one in flights if not one.waiting]
        return left[-1] if left else flights[-1] if flights and shared else None

    def _submitted(self, flight: Flight) -> Callable[[asyncio.Task[Job]], None]:
        def settled(task: asyncio.Task[Job]) -> None:
            if task.cancelled() or task.exception() is not None:
                self._forget(flight)

        return settled

    def _expire(self, flight: Flight) -> None:
        if flight.waiting:
            return
        self._forget(flight)
        flight.job.add_done_callback(self._abandoned)  # at once, unless it is being submitted yet

    def _abandoned(self, task: asyncio.Task[Job]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._spawn(self._cancel(task.result()))

    async def _cancel(self, job: Job) -> None:
        with suppress(AvilaError):
            await self.service.cancel(job)

    def _forget(self, flight: Flight) -> None:
        others = [one for one in self._flights.get(flight.key, ()) if one is not flight]
        if others:
            self._flights[flight.key] = others
        else:
            self._flights.pop(flight.key, None)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _awaited(make: Callable[[], Awaitable[Job]]) -> Job:
    return await make()


def digest_of(path: str, values: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """What tells calls apart: SHA-256 of the path, its fields and its files, whatever order and boundary they came in."""
    plain = {
        "path": path,
        "values": dict(values),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


async def gone(request: Request) -> None:
    """Returns when the caller has gone away. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def present(request: Request, work: Awaitable[Any]) -> Any:
    """What `work` gives. Raises CallerGone where the caller goes away before."""
    wanted, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait((wanted, left), return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise CallerGone
        return wanted.result()
    finally:
        for task in (wanted, left):
            task.cancel()
