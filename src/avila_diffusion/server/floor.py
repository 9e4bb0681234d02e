"""The floor: what the worker has in hand, what it is given next, and what is done with what it says.

It changes jobs while they run and tells the service when a part is drawn or a job must end; only the service commits.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import AvilaError, FileProblem
from .dispatch import Line, Place
from .held import Held
from .job import Job, Preview, Problem, Progress, Using
from .models import ModelIndex
from .problems import NotReady
from .rows import Stamps
from .settings import Settings
from .supervisor import Supervisor
from .tally import Tally
from .wire import Message

RETRIES = 2
"""Times that a job is tried again after the worker died at it without having got any further."""
KILLS = 50
"""The same where somebody killed the worker, which is not the job's fault: kill -9, and the system was not short of memory."""
SETTLING_SECONDS = 120.0
"""How long a model that was loaded may take until its first call before another one may take its place."""
PATIENT_SECONDS = 5.0
"""How long a call may go on after its job's time is over, beyond three usual calls, before the worker counts as hung."""
LEFT_SECONDS = 30.0
"""The same of a job that ended otherwise: somebody cancelled it or went away, and nobody wants what the call makes."""


class Core(Protocol):
    """What the floor asks of the service."""

    settings: Settings
    tally: Tally
    models: ModelIndex
    held: dict[str, Held]

    def model_message(self, using: Using) -> Message:
        """Names and paths for the worker. Raises an AvilaError where one is not there any more."""
        ...

    def part_drawn(self, held: Held, message: Message) -> None:
        """A part is on the disk."""
        ...

    def must_end(self, held: Held, problem: Problem) -> None:
        """It failed."""
        ...

    def must_finish(self, held: Held) -> None:
        """It ends with the pictures that it has."""
        ...

    def unfit(self, why: str | None) -> None:
        """No model can be drawn with, for this reason; None: one can."""
        ...

    def changed(self, held: Held) -> None:
        """Its record is to be brought up to date."""
        ...

    def disk_is_full(self, message: str) -> None:
        """Nothing is begun until it is not."""
        ...


@dataclass
class Floor:
    """See the module. open: whether parts are begun."""

    core: Core
    line: Line = field(default_factory=Line)
    open: bool = True
    loaded: Using | None = None
    report: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settings = self.core.settings
        said = {name: getattr(settings, name) for name in _TOLD}
        self.worker = Supervisor(said, self._heard, self._died)
        self._units: dict[str, Held] = {}
        self._turn: str | None = None
        self._calls: dict[Using | None, float] = {}
        # Unit whose job has ended → seconds that its call may take, and when that was known: what the worker is busy with
        # is told now and then.
        self._unwanted: dict[str, tuple[float, float]] = {}
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self._handlers: Mapping[str, Callable[[Message], None]] = {
            "ready": lambda message: self.wake(),
            "loading": self._loading,
            "loaded": self._loaded,
            "refused": self._refused,
            "unloaded": self._unloaded,
            "unfit": lambda message: self.core.unfit(message["message"]),
            "turn": self._takes_turn,
            "begun": self._begun,
            "progress": self._progress,
            "preview": self._preview,
            "done": self._done,
            "failed": self._failed,
            "stopped": self._stopped,
        }

    def wake(self) -> None:
        """Give the worker what is due."""
        if not self.open or not self.worker.ready:
            return
        places = [held.place for held in self.core.held.values() if self._may_run(held)]
        idle = [place for place in places if self.core.held[place.job.id].unit is None]
        wanted = self._to_load(places)
        if wanted is not None:
            if any(held.place.using is not None for held in self._units.values()):
                for name, held in self._units.items():
                    if held.place.using is not None:
                        self.worker.tell({"do": "stop", "unit": name})
                return
            self.line.holding(wanted, time.monotonic(), 0.0)
        for place in self.line.to_begin(idle, {held.job.client for held in self._units.values()}):
            self._begin(self.core.held[place.job.id])

    def _to_load(self, places: list[Place]) -> Using | None:
        """What is to be loaded now, None: nothing."""
        if self.line.using != self.loaded:
            if any(held.place.using == self.line.using for held in self._units.values()):
                return None  # it is being loaded
            self.line.using = self.loaded  # whoever wanted it has gone
        here = any(held.place.using is not None for held in self._units.values())
        if here and not self._settled_in and time.monotonic() - self.line.since < SETTLING_SECONDS:
            return None  # it was loaded, and no call was made yet
        return self.line.to_load(places, time.monotonic())

    def _may_run(self, held: Held) -> bool:
        return held.job.state in ("queued", "running") and not held.ending and not held.committing

    def _begin(self, held: Held) -> None:
        job, part = held.job, held.place.parts
        using = held.place.using
        if job.interrupted and job.results:
            self.core.must_finish(held)
            return
        try:
            model = None if using is None else self.core.model_message(using)
            _check_unchanged(held.stamps)
        except AvilaError as error:
            self.core.must_end(held, Problem(kind=type(error).__name__, message=str(error), asked=True))
            return
        self._begun_units += 1
        name = f"{job.id}.{part}.{self._begun_units}"  # never the same: what is said of an earlier attempt is not of this one
        self.line.serve(job.client)
        held.unit, held.moved, held.mark = name, False, None
        self._units[name] = held
        if job.started is None:
            job.started = time.time()
            self.core.tally.started(job, job.started - job.created)
        job.state = "running"
        held.say_state(0)
        self.worker.tell(
            {
                "do": "draw",
                "unit": name,
                "job": job.id,
                "part": part,
                "first": part * job.request.batch,
                "client": job.client,
                "request": job.request.part(part).to_dict(),
                "model": model,
                "key": _lora_key(job),
                "folder": str(held.folder),
                "interrupted": job.interrupted,
                "preview_every": self.core.settings.preview_every,
            }
        )

    def put_away(self, held: Held, *, forget: bool = False) -> None:
        """Take a job out of the worker's hands, at the next call at the latest. forget: its journal is of no more use."""
        # A paused one has left its unit, whose last call may be under way still.
        doing = held.unit or (self.worker.busy if (self.worker.busy or "").startswith(f"{held.job.id}.") else None)
        if forget and doing is not None:
            self._unwanted.setdefault(doing, (LEFT_SECONDS, time.monotonic()))
        if held.unit is not None:
            self.worker.tell({"do": "stop", "unit": held.unit, "forget": forget})
            self._release(held.unit)

    def end_early(self, held: Held, how: str) -> None:
        """See `result.Early`."""
        if held.unit is not None:
            self.worker.tell({"do": "early", "unit": held.unit, "how": how})

    async def load(self, using: Using | None) -> None:
        """Let the worker hold this, None: nothing. Raises AvilaError where it cannot."""
        if not self.worker.ready:
            raise NotReady("the worker is being started; try again in a few seconds")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if using is None:
            self._waiting.append(("", future))
            self.worker.tell({"do": "unload"})
        else:
            message = self.core.model_message(using)
            self._waiting.append((message["name"], future))
            self.worker.tell({"do": "load", "model": message})
        await future

    def watch(self, now: float) -> None:
        """To be called twice a second: ends what lasts too long. now: seconds since 1970."""
        self.worker.check()
        for held in list(self.core.held.values()):
            if held.deadline is not None and now > held.deadline and not held.ending:
                line = f"it was not done in the {held.deadline - held.job.created:.0f} seconds that it had"
                unit = held.unit
                self.core.must_end(held, Problem(kind="TimedOut", message=line, lasting=False))
                if unit is not None:
                    self._unwanted[unit] = PATIENT_SECONDS, time.monotonic()
        busy, since = self.worker.busy, self.worker.busy_since
        usual = max(self._calls.values(), default=0.0)
        for unit, (_, known) in list(self._unwanted.items()):
            if not self.worker.ready or (unit != busy and time.monotonic() - known > PATIENT_SECONDS):
                del self._unwanted[unit]
        patience, known = self._unwanted.get(busy or "", (math.inf, 0.0))
        unwanted = min(since, time.monotonic() - known) > patience + 3 * usual
        if busy is not None and (unwanted or since > self.core.settings.limits.call_seconds):
            self.worker.kill(f"hung: one call took {since:.0f} seconds")
        self.wake()

    _begun_units: int = 0
    _settled_in: bool = False

    # What the worker says.

    def _heard(self, message: Message) -> None:
        self._handlers[message["is"]](message)

    def _loading(self, message: Message) -> None:
        for held in self._units.values():
            if held.place.using is not None:
                held.job.progress.stage = "load"
                held.log.progress(held.job.progress)

    def _loaded(self, message: Message) -> None:
        self.worker.worked()
        self.core.unfit(None)
        using = Using(**message["using"])
        if using != self.loaded:
            self.line.holding(using, time.monotonic(), message["seconds"])
            self._settled_in = False
        self.loaded, self.report = using, tuple(message["report"])
        self._settle(message["model"], None)
        self.wake()

    def _refused(self, message: Message) -> None:
        self.line.using = self.loaded
        self._settle(message["model"], FileProblem(message["message"]))

    def _unloaded(self, message: Message) -> None:
        self.loaded, self.report, self.line.using = None, (), None
        self._settle("", None)
        self.wake()

    def give_up(self, why: str) -> None:
        """Nobody will be told any more that a model is loaded."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(NotReady(why))
        self._waiting.clear()

    def _settle(self, name: str, error: AvilaError | None) -> None:
        for wanted, future in [one for one in self._waiting if one[0] == name]:
            self._waiting.remove((wanted, future))
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _takes_turn(self, message: Message) -> None:
        self._turn = message["unit"]

    def _begun(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if held is not None and held.place.using is not None:
            held.job.report = self.report

    def _progress(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if held is None:
            return
        self.worker.worked()
        job = held.job
        reached = (held.place.parts, message["image"], message["stage"] == "decode", message["step"])
        if (message["step"] or message["stage"] == "decode") and reached > held.reached:
            held.reached, held.moved, self._settled_in = reached, True, True
            job.retries = held.killed = 0
            if message["step"]:
                seconds = float(message["seconds"])
                self._calls[held.place.using] = 0.8 * self._calls.get(held.place.using, seconds) + 0.2 * seconds
                self.core.tally.called(job, seconds)
        image = held.place.parts * job.request.batch + message["image"]
        job.skipped &= image == job.progress.image
        share = message["step"] / message["of"] if message["of"] and message["stage"] == "sample" else 0.0
        fraction = (image + (0.98 if message["stage"] == "decode" else 0.97 * share)) / job.images
        if held.mark is None and message["step"]:
            held.mark = time.monotonic(), fraction
        job.progress = Progress(
            stage=message["stage"],
            image=image,
            step=message["step"],
            of=message["of"],
            fraction=max(fraction, 0.0),
            eta=self._eta(held, fraction),
            sigma=message["sigma"],
        )
        held.log.progress(job.progress)

    def _eta(self, held: Held, fraction: float) -> float | None:
        """Seconds to the end, by the calls after the first: that one packs the weights, and says nothing about the others."""
        if held.mark is None or fraction <= held.mark[1]:
            return None
        began, at = held.mark
        return (time.monotonic() - began) / (fraction - at) * (1 - fraction)

    def _preview(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if held is None:
            return
        number = 1 if held.job.preview is None else held.job.preview.number + 1
        image = held.place.parts * held.job.request.batch + message["image"]
        held.job.preview = Preview(number, image, base64.b64decode(message["data"]), message["media_type"])
        held.log.preview(held.job.preview)

    def _done(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if held is not None:
            self.worker.worked()
            self.core.part_drawn(held, message)

    def _failed(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if self.line.using != self.loaded:
            self.line.using = self.loaded  # what could not be loaded did not take the old one's place
        if held is None:
            return
        self._release(message["unit"])
        if message["full"]:
            _back_in_line(held)
            self.core.disk_is_full(message["message"])
        elif message["kind"] == "JournalProblem" and held.job.retries < RETRIES:
            self._again(held, "its journal could not be gone on with")
            with contextlib.suppress(OSError):
                (held.folder / f"{held.place.parts}.journal").unlink(missing_ok=True)
        else:
            names = ("kind", "asked", "lasting")
            line = self.core.models.without_folders(message["message"])
            self.core.must_end(held, Problem(message=line, **{name: message[name] for name in names}))
        self.wake()

    def _stopped(self, message: Message) -> None:
        held = self._units.get(message["unit"])
        if held is not None:
            self._release(message["unit"])
            _back_in_line(held)
        self.wake()

    def released(self, held: Held) -> None:
        """Its part is committed, or it has ended."""
        if held.unit is not None:
            self._release(held.unit)

    def _release(self, unit: str) -> None:
        held = self._units.pop(unit, None)
        if held is not None:
            held.unit = None

    def _again(self, held: Held, why: str) -> None:
        held.job.retries += 1
        held.log.add("note", {"text": f"{why}; it is tried again ({held.job.retries} of {RETRIES})"})
        _back_in_line(held)
        self.core.changed(held)

    def _died(self, why: str, outside: bool) -> None:
        """The worker is gone. The job whose turn it was is suspected, unless it had got further or somebody killed the worker;
        all are begun again."""
        self.core.tally.restarted("hang" if why.startswith("hung") else "crash")
        self.loaded, self.line.using, self.report = None, None, ()
        units, self._units = dict(self._units), {}
        self.give_up(f"the worker {why} while it loaded the model")
        for name, held in units.items():
            held.unit = None
            if held.committing:
                continue
            if name != self._turn or held.moved:
                _back_in_line(held)
            elif outside and held.killed < KILLS:
                held.killed += 1
                _back_in_line(held)
            elif held.job.retries >= RETRIES:
                line = f"the process that draws {why} {RETRIES + 1} times at this job; it is not tried again"
                self.core.must_end(held, Problem(kind="Crashed", message=line))
            else:
                self._again(held, f"the process that draws {why}")
        self._turn = None


def _back_in_line(held: Held) -> None:
    """No longer in hand. What was paused or has ended meanwhile stays so."""
    if held.job.state == "running":
        held.job.state = "queued"
        held.say_state()


_TOLD = ("device", "dtype", "threads", "memory", "max_memory", "mmap", "preview_decoder", "models_dir", "warm_up")


def _check_unchanged(stamps: Stamps) -> None:
    for path, stamp in stamps.items():
        try:
            status = Path(path).stat()
        except OSError:
            raise FileProblem(
                f"{Path(path).name} is not there any more; rescan the models and submit the job again"
            ) from None
        if (status.st_size, status.st_mtime_ns) != tuple(stamp):
            raise FileProblem(
                f"the model file {Path(path).name} has changed since the job was accepted; submit the job again"
            )


def _lora_key(job: Job) -> Any:
    """What its prompts put into the model: jobs that agree in it may take turns without changing the model at each."""
    prompts = (job.request.prompt, job.request.hires_prompt or "")
    found = sorted({part.partition(">")[0] for prompt in prompts for part in prompt.split("<lora:")[1:]})
    return "|".join(found)
