"""What happened to a job, for whoever follows it: the newest of each kind is held, and everybody who waits is told."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

from .job import Event, Job, Preview, Progress

Kind = Literal["state", "progress", "preview", "picture", "note", "end"]
HELD = 64
"""Notes, of which there is no end. Pictures are all held, as many as a job may have; of the other kinds the newest."""
_NEWEST = ("state", "progress", "preview")


class EventLog:
    """The events of one job. Numbers go on over restarts of the server, because they begin at its milliseconds."""

    def __init__(self) -> None:
        self._number = int(time.time() * 1000)
        self._notes: deque[Event] = deque(maxlen=HELD)
        self._kept: list[Event] = []
        self._newest: dict[str, Event] = {}
        self._changed = asyncio.Event()
        self.ended = False

    def add(self, kind: Kind, data: Mapping[str, Any]) -> None:
        """One more. After "end" there are no others."""
        if self.ended:
            return
        self._number = max(self._number + 1, int(time.time() * 1000))
        event = Event(self._number, kind, data)
        if kind in _NEWEST:
            self._newest[kind] = event
        else:
            (self._notes if kind == "note" else self._kept).append(event)
        self.ended = kind == "end"
        self.wake()

    def wake(self) -> None:
        """Let those that wait look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        self.add("progress", asdict(progress))

    def preview(self, preview: Preview) -> None:
        """A new preview."""
        data = base64.b64encode(preview.data).decode("ascii")
        self.add(
            "preview",
            {"number": preview.number, "image": preview.image, "media_type": preview.media_type, "data": data},
        )

    def since(self, number: int) -> list[Event]:
        """Those after `number` that are held, in order."""
        found = [event for event in (*self._kept, *self._notes, *self._newest.values()) if event.number > number]
        return sorted(found, key=lambda event: event.number)

    async def follow(self, after: int = 0) -> AsyncIterator[Event]:
        """Those after `after`, then new ones as they come, "end" last."""
        while True:
            changed = self._changed
            for event in self.since(after):
                yield event
                after = event.number
                if event.kind == "end":
                    return
            if self.ended:
                return
            if changed is self._changed:
                await changed.wait()

    async def until_end(self) -> None:
        """Waits for it."""
        while not self.ended:
            await self._changed.wait()


def ending(job: Job) -> dict[str, Any]:
    """The data of a job's last event."""
    return {"state": job.state, "problem": None if job.problem is None else asdict(job.problem)}


async def of_ended(job: Job, after: int = 0) -> AsyncIterator[Event]:
    """The events of a job that has ended and is no longer followed: its pictures, and the end."""
    number = int((job.finished or 0) * 1000)
    for result in job.results:
        if number + result.index > after:
            yield Event(number + result.index, "picture", asdict(result))
    yield Event(max(number + len(job.results), after + 1), "end", ending(job))
