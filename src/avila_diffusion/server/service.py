"""The core that all routes call: it accepts jobs, has them drawn, and keeps what came of them."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..errors import AvilaError, ModelNotFound, OutputProblem, RequestError
from . import rows
from .acceptance import resolve
from .core import Core
from .events import of_ended
from .held import Held
from .job import ENDED, WAITING, Event, Job, State, given_of
from .problems import Conflict, Draining, NoSuchJob, QueueFull
from .submission import Submission

MAX_PRIORITY = 100


@dataclass(frozen=True)
class Health:
    """How the server is. live: it answers. ready: jobs are taken and drawn; reasons: why not."""

    live: bool
    ready: bool
    reasons: tuple[str, ...]
    worker: Literal["starting", "idle", "busy", "stopped", "lost"]
    loaded: str | None
    queued: int
    running: int
    paused: int
    worker_memory: int | None


class Service(Core):
    """One server's jobs, and what may be asked of it."""

    # Jobs come in.

    async def submit(self, asked: Submission) -> Job:
        """A new job; it is on the disk when this returns. See the errors in `problems`, RequestError and ModelNotFound."""
        if asked.key is not None and (known := await self._known(asked)) is not None:
            return known
        self._check_room(asked)
        self._reserve(asked, 1)
        # Shielded: a caller that goes away must not leave a row that nobody draws.
        return await asyncio.shield(self._spawn(self._accepted(asked)))

    async def _accepted(self, asked: Submission) -> Job:
        """The job, for which there is room. The room is its own from then on."""
        try:
            return await self._accept(asked)
        except AvilaError as error:
            self.tally.rejected(_reason(error))
            raise
        finally:
            self._reserve(asked, -1)

    async def _accept(self, asked: Submission) -> Job:
        limits = self.settings.limits
        if not -MAX_PRIORITY <= asked.priority <= MAX_PRIORITY:
            raise RequestError(f"priority is {asked.priority}; it must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        here = self.models, self.settings, self.default_model, self.default_vae
        request, using = await asyncio.to_thread(resolve, asked, *here)
        given = await asyncio.to_thread(given_of, request)
        seconds = limits.job_seconds if asked.seconds is None else asked.seconds
        now = time.time()
        job = Job(
            id=secrets.token_hex(16),
            number=0,
            client=asked.client,
            request=request,
            using=using,
            priority=asked.priority,
            dialect=asked.dialect,
            task=asked.task,
            extra=dict(asked.extra),
            given=given,
            created=now,
        )
        stamps = await asyncio.to_thread(self._stamps, using)
        deadline = None if seconds is None else now + seconds
        keyed: dict[str, Any] = {"key": asked.key, "digest": asked.digest}
        insert = partial(rows.insert, job=job, stamps=stamps, size=asked.size, deadline=deadline, **keyed)
        try:
            job.number = await self._do(insert)
        except sqlite3.IntegrityError:  # the same key, a moment earlier
            if (known := await self._known(asked)) is not None:
                return known
            raise
        held = self._hold(job, stamps, asked.size, deadline, 0)
        self.tally.accepted(job)
        held.say_state(self.position(job))
        self._wake()
        return job

    async def _known(self, asked: Submission) -> Job | None:
        """The job that was made with this key. Raises Conflict where the key came with another body."""
        assert asked.key is not None
        found = await self._do(partial(rows.with_key, client=asked.client, key=asked.key))
        if found is None:
            return None
        id, digest = found
        if digest != asked.digest:
            raise Conflict("this idempotency key was used for another request; take a new key for a new request")
        return await self.find(id)

    def full(self, client: str) -> QueueFull | None:
        """What `submit` would raise for a full queue now."""
        limits = self.settings.limits
        waiting = len(self.held) + sum(self._reserved.values())
        size = sum(held.size for held in self.held.values()) + self._reserved_bytes
        base = self._payer(client)
        own = sum(self._payer(held.job.client) == base for held in self.held.values())
        own += sum(count for other, count in self._reserved.items() if self._payer(other) == base)
        retry = min(max(self._interval, 1.0), 120.0)
        if waiting >= limits.queue or size >= limits.queue_bytes:
            return QueueFull(
                f"{waiting} jobs are waiting, and no more are taken; try again in {retry:.0f} seconds", retry
            )
        if own >= limits.per_client:
            return QueueFull(
                f"{own} jobs of yours are waiting, and no more are taken; try again in {retry:.0f} seconds", retry
            )
        return None

    def _payer(self, client: str) -> str:
        """Whom a client's jobs count for: on a server for others, all names that a caller gives itself are that caller's."""
        return client if self.settings.token is None and not self.settings.insecure else client.partition("/")[0]

    def _check_room(self, asked: Submission) -> None:
        if self._draining:
            self.tally.rejected("draining")
            raise Draining("the server is about to stop and takes no more jobs; try again when it is back")
        if self._trouble is not None:
            self.tally.rejected("disk")
            raise OutputProblem(self._trouble)
        if (full := self.full(asked.client)) is not None:
            self.tally.rejected("queue")
            raise full

    def _reserve(self, asked: Submission, sign: int) -> None:
        self._reserved[asked.client] = self._reserved.get(asked.client, 0) + sign
        if not self._reserved[asked.client]:
            del self._reserved[asked.client]
        self._reserved_bytes += sign * asked.size

    # What is there.

    def live(self) -> list[Job]:
        """Queued, running and paused jobs, about in the order in which they will be served."""
        return sorted((held.job for held in self.held.values()), key=_order)

    def position(self, job: Job) -> int:
        """0: it runs; 1: it is next."""
        if job.state == "running" or job.ended:
            return 0
        key = _order(job)
        others = (held.job for held in self.held.values())
        return 1 + sum(other.state != "running" and _order(other) < key for other in others)

    def running(self, client: str | None = None) -> list[Job]:
        """The oldest first."""
        return sorted(
            (
                held.job
                for held in self.held.values()
                if held.job.state == "running" and client in (None, held.job.client)
            ),
            key=lambda job: job.number,
        )

    async def find(self, id: str, client: str | None = None) -> Job:
        """A job, ended or not. Raises NoSuchJob where there is none, or none of this client's."""
        held = self.held.get(id)
        job = held.job if held is not None else await self._do(partial(rows.find, id=id))
        if job is None or client not in (None, job.client):
            raise NoSuchJob(f"there is no job {id[:40]!a}; it may have been deleted")
        return job

    async def list(
        self, client: str | None = None, *, states: Collection[State] = (), limit: int = 50, before: int | None = None
    ) -> list[Job]:
        """The newest first. before: only those with a lower number."""
        wanted: frozenset[State] = frozenset(states) if states else ENDED | WAITING | {"running"}
        ended = await self._do(partial(rows.listed, client=client, states=wanted & ENDED, limit=limit, before=before))
        live = [
            held.job
            for held in self.held.values()
            if held.job.state in wanted
            and client in (None, held.job.client)
            and (before is None or held.job.number < before)
        ]
        found = {job.id: job for job in (*ended, *live)}
        return sorted(found.values(), key=lambda job: -job.number)[:limit]

    def of_task(self, task: str, client: str | None = None) -> Job | None:
        """The newest job that was submitted under this task name, live or one of those that ended lately."""
        known = (*(held.job for held in self.held.values()), *(job for job, _ in self.recent.values()))
        found = [job for job in known if job.task == task and client in (None, job.client)]
        return max(found, key=lambda job: job.number, default=None)

    async def ended(self, job: Job) -> Job:
        """The job, when it has ended. Raises Draining where the server stops before."""
        if (held := self.held.get(job.id)) is not None:
            await held.log.until_end()
            if not job.ended:
                raise Draining("the server stops; the job goes on when it is started again")
        return job

    async def events(self, job: Job, after: int = 0) -> AsyncIterator[Event]:
        """Those after number `after`, then new ones, "end" last."""
        held = self.held.get(job.id)
        async for event in of_ended(job, after) if held is None else held.log.follow(after):
            yield event

    def file(self, job: Job, index: int) -> Path:
        """The PNG of a finished picture. Raises NoSuchJob where it is not there (yet)."""
        result = next((one for one in job.results if one.index == index), None)
        path = None if result is None else self._jobs_folder / job.id / result.file
        if path is None or not path.is_file():
            raise NoSuchJob(f"job {job.id} has no picture {index}; it has {len(job.results)} now")
        return path

    # What may be done to a job.

    async def cancel(self, job: Job) -> Job:
        """End it. A call of the model that is under way goes on, unless it lasts: then the worker is started again."""
        held = self.held.get(job.id)
        if held is not None and not held.ending:
            await self._end(held, "cancelled", None)
        return job

    def interrupt(self, job: Job) -> None:
        """End it soon, with what there is: the picture that is drawn is finished early, and no other begun."""
        held = self.held.get(job.id)
        if held is None or held.ending:
            return
        job.interrupted = True
        assert self.floor is not None
        if held.unit is not None:
            self.floor.end_early(held, "finish")
            self._spawn(self._do(partial(rows.change, job=job)))
        else:
            self._spawn(self._end(held, "done" if job.results else "cancelled", None))

    def skip(self, job: Job) -> None:
        """Finish the picture that is drawn early, and go on."""
        held = self.held.get(job.id)
        if held is not None and self.floor is not None and held.unit is not None:
            job.skipped = True
            self.floor.end_early(held, "skip")

    async def pause(self, job: Job) -> Job:
        """Put it aside. Raises Conflict where it has ended."""
        held = self._alive(job)
        before, job.state = job.state, "paused"
        await self._change(held, before)
        assert self.floor is not None
        self.floor.put_away(held)
        held.say_state()
        self._wake()
        return job

    async def resume(self, job: Job) -> Job:
        """Put it back in the line. Raises Conflict where it has ended."""
        held = self._alive(job)
        if job.state == "paused":
            job.state = "queued"
            await self._change(held, "paused")
            held.say_state(self.position(job))
            self._wake()
        return job

    async def prioritise(self, job: Job, priority: int) -> Job:
        """Let it go before (more) or after (less) others of its client. Raises RequestError beyond -100 to 100."""
        held = self._alive(job)
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise RequestError(f"priority is {priority}; it must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        job.priority = priority
        await self._change(held, job.state)
        return job

    async def delete(self, job: Job) -> None:
        """An ended job and its pictures. Raises Conflict for others."""
        if not job.ended:
            raise Conflict(f"job {job.id} is {job.state}; cancel it first")
        await self._do(partial(rows.delete, numbers=[job.number]))
        await asyncio.to_thread(shutil.rmtree, self._jobs_folder / job.id, True)

    def _alive(self, job: Job) -> Held:
        held = self.held.get(job.id)
        if held is None or held.ending:
            raise Conflict(f"job {job.id} has ended ({job.state})")
        return held

    async def _change(self, held: Held, before: State) -> None:
        try:
            await self._do(partial(rows.change, job=held.job))
        except BaseException:
            held.job.state = before
            raise

    def problem(self) -> str | None:
        """Why the server cannot work now."""
        return self._trouble or self._unfit or (None if self.floor is None else self.floor.worker.trouble)

    def health(self) -> Health:
        """How it is."""
        worker = "stopped" if self.floor is None else self.floor.worker.state
        reasons = [
            reason for reason in (self.problem(), "the server is about to stop" if self._draining else None) if reason
        ]
        if worker in ("starting", "lost", "stopped"):
            reasons.append(f"the worker is {worker}")
        states = [held.job.state for held in self.held.values()]
        return Health(
            live=True,
            ready=not reasons,
            reasons=tuple(reasons),
            worker=worker,
            loaded=self.loaded,
            queued=states.count("queued"),
            running=states.count("running"),
            paused=states.count("paused"),
            worker_memory=None if self.floor is None else self.floor.worker.memory,
        )


_STATES = {"running": 0, "queued": 1, "paused": 2}


def _order(job: Job) -> tuple[int, int, int]:
    """By which live jobs are listed."""
    return _STATES.get(job.state, 0), -job.priority, job.number


def _reason(error: AvilaError) -> str:
    kinds: tuple[tuple[type[AvilaError], str], ...] = ((ModelNotFound, "model"), (OutputProblem, "disk"))
    return next((reason for kind, reason in kinds if isinstance(error, kind)), "request")
