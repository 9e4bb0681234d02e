"""What happens to jobs: taken up again at the start, drawn part by part, committed, ended once, kept for a while.

`Service` is this with what may be asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AvilaError, FileProblem, ModelNotFound, OutputProblem
from . import rows
from .dispatch import Place
from .entries import PROCEDURAL
from .events import EventLog, ending
from .floor import Floor
from .held import Held
from .job import Job, Problem, Result, State, Using
from .models import ModelIndex
from .problems import Draining, NotReady
from .settings import Settings
from .store import Store
from .tally import Tally
from .wire import Message

log = logging.getLogger("avila.server")

Made = TypeVar("Made")

TICK_SECONDS = 0.5
STOP_SECONDS = 0.5
"""That the worker has to leave: what it has in hand is in its journal."""
PROBE_BYTES = 1 << 20
PROBE_SECONDS = 5.0
SWEEP_SECONDS = 60.0
REMEMBERED = 1000
REMEMBERED_BYTES = 64 << 20
"""Ended jobs that are still known by their task's name, and the bytes of what they asked for."""


class Core:
    """The state of a server. Everything is for the event loop on which it was started."""

    def __init__(self, settings: Settings, tally: Tally | None = None) -> None:
        self.settings, self.tally = settings, Tally() if tally is None else tally
        self.models = ModelIndex(settings.models_dir)
        self.started = time.time()
        self.held: dict[str, Held] = {}
        self.recent: OrderedDict[str, tuple[Job, int]] = OrderedDict()
        self.default_vae: str | None = None
        self._default: str | None = settings.model
        self._draining = False
        self._trouble: str | None = None
        self._unfit: str | None = None
        self._probed = self._swept = 0.0
        self._reserved: dict[str, int] = {}
        self._reserved_bytes = 0
        self._interval = 5.0
        self._last_end = time.monotonic()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._store: Store | None = None
        self.floor: Floor | None = None

    # Begin and end.

    async def start(self) -> None:
        """Open the store, take up what an earlier server left, start the worker. Raises FileProblem where the data folder is in
        use, OutputProblem where it cannot be written, ModelNotFound for a default model that is not there."""
        self._store = await asyncio.to_thread(Store, self.settings.data / "jobs.sqlite")
        await self.models.scan()
        await self._check_names()
        self._jobs_folder.mkdir(parents=True, exist_ok=True)
        await self._store.do(partial(rows.give_up_unreadable, finished=time.time()))
        for job, stamps, parts, size, deadline in await self._store.do(rows.unended):
            if job.state != "paused":
                job.state = "queued"
            self._hold(job, stamps, size, deadline, parts)
        known = await self._store.do(rows.ids)
        await asyncio.to_thread(self._remove_orphans, known)
        self.floor = Floor(self)
        self.floor.worker.start()
        if self.settings.model is not None and self._default != PROCEDURAL:
            self._spawn(self._preload())
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def _check_names(self) -> None:
        """What was named at the start is there and can be used. Raises ModelNotFound, FileProblem."""
        if self.settings.preview_decoder is not None:
            self.models.find(self.settings.preview_decoder, "taesd")
        if self.settings.model is not None:
            entry = self.models.find(self.settings.model)
            facts = await asyncio.to_thread(self.models.facts, entry)
            if facts.problem:
                raise FileProblem(facts.problem)
            self._default = entry.name

    async def _preload(self) -> None:
        assert self.floor is not None
        while not self.floor.worker.ready:
            await asyncio.sleep(0.05)
        try:
            await self.load(None)
        except NotReady:
            pass  # it died or the server stops; the first job loads it
        except AvilaError as error:
            self.unfit(str(error))

    def unfit(self, why: str | None) -> None:
        """The worker can draw with no model, for this reason; None: it can."""
        if why is not None and why != self._unfit:
            log.error("no model can be drawn with: %s", why)
        self._unfit = why

    def drain(self) -> None:
        """From now on no job is taken and no part begun."""
        self._draining = True
        if self.floor is not None:
            self.floor.open = False

    async def stop(self, seconds: float | None = None) -> None:
        """Drain: what is in hand may end for so long (by default as set); then all is closed. What waits, waits on disk."""
        self.drain()
        until = time.monotonic() + (self.settings.drain if seconds is None else seconds)
        while time.monotonic() < until and any(held.unit is not None for held in self.held.values()):
            await asyncio.sleep(0.05)
        if self._ticker is not None:
            self._ticker.cancel()
        if self.floor is not None:
            await self.floor.worker.stop(STOP_SECONDS)
            self.floor.give_up("the server stops")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)
        for held in self.held.values():
            held.log.ended = True
            held.log.wake()
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def _hold(self, job: Job, stamps: rows.Stamps, size: int, deadline: float | None, parts: int) -> Held:
        place = Place(job, job.request.count, parts, using=None if job.using.model == PROCEDURAL else job.using)
        held = Held(job, place, EventLog(), stamps, size, deadline, self._jobs_folder / job.id)
        self.held[job.id] = held
        return held

    # Models.

    @property
    def default_model(self) -> str:
        """The model where none is asked for: the one that was set, else the first of the user's, else the bundled one."""
        if self._default is not None and any(entry.name == self._default for entry in self.models.entries()):
            return self._default
        return self.models.first

    @default_model.setter
    def default_model(self, name: str) -> None:
        self._default = self.models.find(name).name

    @property
    def loaded(self) -> str | None:
        """The model that the worker holds."""
        using = None if self.floor is None else self.floor.loaded
        return None if using is None else using.model

    async def load(self, name: str | None = None) -> None:
        """Have the worker hold a model, by default the default one. Raises an AvilaError where it cannot."""
        entry = self.models.find(self.default_model if name is None else name)
        assert self.floor is not None
        if entry.name != PROCEDURAL:
            await self.floor.load(Using(model=entry.name, vae=self.default_vae))

    async def unload(self) -> None:
        """Have it hold none."""
        assert self.floor is not None
        await self.floor.load(None)

    def model_message(self, using: Using) -> Message:
        """Names and paths for the worker."""
        paths = {
            "path": self._path(using.model, "checkpoint"),
            "vae": None if using.vae is None else self._path(using.vae, "vae"),
            "refiner": None if using.refiner is None else self._path(using.refiner, "checkpoint"),
        }
        return {"name": using.model, "using": using.to_dict(), **paths}

    def _path(self, name: str, role: str) -> str:
        entry = self.models.find(name, role)
        if entry.path is None:
            raise ModelNotFound(f"{name} is no file that could be loaded")
        return str(entry.path)

    def _stamps(self, using: Using) -> dict[str, tuple[int, int]]:
        if using.model == PROCEDURAL:
            return {}
        paths = [
            path for name, path in self.model_message(using).items() if name in ("path", "vae", "refiner") and path
        ]
        try:
            found = {path: Path(path).stat() for path in paths}
        except OSError as error:
            name = Path(error.filename or "a model").name
            raise FileProblem(f"{name} cannot be read any more ({error.strerror}); rescan the models") from None
        return {path: (status.st_size, status.st_mtime_ns) for path, status in found.items() if Path(path).is_file()}

    # What the floor tells.

    def part_drawn(self, held: Held, message: Message) -> None:
        """Commit a part; with the last one, the end."""
        if not held.committing:
            held.committing = True
            self._spawn(self._commit_part(held, message))

    async def _commit_part(self, held: Held, message: Message) -> None:
        try:
            await self._commit(held, message)
        except (OutputProblem, Draining):
            pass  # the part's journal has everything: it is drawn again when there is room, or when the server is back
        except Exception as error:
            # What cannot be written down now can it no better when it is drawn again, which would never end.
            log.exception("what was drawn of job %s could not be written down", held.job.id)
            line = (
                f"its pictures were drawn and could not be written down ({type(error).__name__}); see the server's log"
            )
            await self._end(held, "failed", Problem(kind="Incident", message=line))
        finally:
            held.committing = False
            if self.floor is not None:
                self.floor.released(held)
            if held.job.state == "running":
                held.job.state = "queued"
            self._wake()

    async def _commit(self, held: Held, message: Message) -> None:
        job, part = held.job, held.place.parts
        drawn = tuple(Result(**one) for one in message["results"])
        results = (*(one for one in job.results if one.index < part * job.request.batch), *drawn)
        job.notes = tuple(dict.fromkeys((*job.notes, *message["notes"])))
        last = part + 1 >= job.request.count or job.interrupted
        finished = time.time()

        def work(connection: sqlite3.Connection) -> sqlite3.Row | None:
            rows.add_part(connection, job, part, drawn)
            return rows.end(connection, job, "done", None, finished) if last else None

        row = await self._do(work)
        held.place.parts, job.results = part + 1, results
        for one in drawn:
            self.tally.drawn(job)
            held.log.add("picture", _result(one))
        with contextlib.suppress(OSError):
            (held.folder / f"{part}.journal").unlink(missing_ok=True)
        if row is not None:
            self._ended(held, row["state"], None, finished)
        elif job.interrupted:  # since the commit was begun
            await self._end(held, "done", None)

    def must_end(self, held: Held, problem: Problem) -> None:
        """A job failed."""
        if not held.ending:
            held.ending = True
            self._spawn(self._finish(held, "failed", problem))

    def must_finish(self, held: Held) -> None:
        """A job ends with the pictures that it has."""
        if not held.ending:
            held.ending = True
            self._spawn(self._finish(held, "done", None))

    def changed(self, held: Held) -> None:
        """Bring a live job's record up to date."""
        self._spawn(self._do(partial(rows.change, job=held.job)))

    def disk_is_full(self, message: str) -> None:
        """Stop beginning anything until there is room."""
        self._trouble, self._probed = message, time.monotonic()
        if self.floor is not None:
            self.floor.open = False

    async def _end(self, held: Held, state: State, problem: Problem | None) -> None:
        if not held.ending:
            held.ending = True
            await asyncio.shield(self._spawn(self._finish(held, state, problem)))

    async def _finish(self, held: Held, state: State, problem: Problem | None) -> None:
        """Commit an end; another one that was committed before it stands."""
        finished = time.time()
        try:
            row = await self._do(partial(rows.end, job=held.job, state=state, problem=problem, finished=finished))
        except BaseException:
            held.ending = False
            raise
        if self.floor is not None:
            self.floor.put_away(held, forget=True)
        self._ended(held, state if row is None else row["state"], problem, finished)
        with contextlib.suppress(OSError):
            for journal in held.folder.glob("*.journal"):
                journal.unlink(missing_ok=True)

    def _ended(self, held: Held, state: State, problem: Problem | None, finished: float) -> None:
        """It is on the disk that it ended: tell everybody, once."""
        job = held.job
        if self.held.pop(job.id, None) is None:
            return
        held.ending = True
        if job.task is not None:
            self._remember(held)
        job.state, job.finished, job.preview = state, finished, None
        job.problem = problem if state == "failed" else None
        if state == "done":
            job.progress.fraction, job.progress.eta = 1.0, None
        if self.floor is not None:
            self.floor.released(held)
        now = time.monotonic()
        self._interval = 0.8 * self._interval + 0.2 * min(now - self._last_end, 600.0)
        self._last_end = now
        self.tally.ended(job, None if job.started is None else finished - job.started)
        held.log.add("end", ending(job))
        self._wake()

    def _remember(self, held: Held) -> None:
        """An ended job may be asked for by its task's name for a while; with its pictures it may be large."""
        self.recent[held.job.id] = held.job, held.size
        while len(self.recent) > REMEMBERED or sum(size for _, size in self.recent.values()) > REMEMBERED_BYTES:
            self.recent.popitem(last=False)

    # In the background.

    async def _tick(self) -> None:
        """Whatever goes wrong in one round, there is a next one: deadlines, hangs and full disks are seen nowhere else."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._round()
            except Exception as error:
                asyncio.get_running_loop().call_exception_handler({"message": "in the service", "exception": error})

    async def _round(self) -> None:
        assert self.floor is not None
        self.floor.watch(time.time())
        now = time.monotonic()
        if self._trouble is not None and now - self._probed >= PROBE_SECONDS:
            self._probed = now
            if await asyncio.to_thread(self._can_write):
                self._trouble, self.floor.open = None, not self._draining
                self.floor.wake()
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            self._spawn(self.sweep())

    async def sweep(self) -> int:
        """Delete ended jobs beyond what is kept. Returns how many."""
        kept = self.settings.retention
        oldest = None if kept.age is None else time.time() - kept.age
        found = await self._do(partial(rows.surplus, count=kept.count, oldest=oldest, size=kept.size))
        if found:
            await self._do(partial(rows.delete, numbers=[number for number, _ in found]))
            for _, id in found:
                await asyncio.to_thread(shutil.rmtree, self._jobs_folder / id, True)
        return len(found)

    @property
    def _jobs_folder(self) -> Path:
        return self.settings.data / "jobs"

    def _remove_orphans(self, known: set[str]) -> None:
        """Folders of jobs that no record has, of a job that was deleted while the server died; and what a killed process has
        left in the others."""
        for folder in self._jobs_folder.iterdir():
            if folder.name not in known and folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):
                left = [
                    *folder.glob(".avila-*.partial"),
                    *([] if folder.name in self.held else folder.glob("*.journal")),
                ]
                for path in left:
                    path.unlink(missing_ok=True)

    def _can_write(self) -> bool:
        probe = self.settings.data / ".probe"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return True

    def _wake(self) -> None:
        if self.floor is not None:
            self.floor.wake()

    async def _do(self, work: Any) -> Any:
        assert self._store is not None
        try:
            return await self._store.do(work)
        except OutputProblem as error:
            self.disk_is_full(str(error))
            raise

    def _spawn(self, what: Coroutine[Any, Any, Made]) -> asyncio.Task[Made]:
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, AvilaError):
            asyncio.get_running_loop().call_exception_handler({"message": "in the service", "exception": error})


def _result(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in ("index", "seed", "width", "height", "size", "infotext")}
