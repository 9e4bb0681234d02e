"""A job as everybody sees it: what was asked for, how far it is, what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..request import PICTURES, GenerateRequest

State = Literal["queued", "running", "paused", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset(("done", "failed", "cancelled"))
WAITING: frozenset[State] = frozenset(("queued", "paused"))


@dataclass(frozen=True, kw_only=True)
class Using:
    """Which files a job is drawn with: names in the index. vae, refiner: None for the model's own, for none."""

    model: str
    vae: str | None = None
    refiner: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """As plain values."""
        return {"model": self.model, "vae": self.vae, "refiner": self.refiner}


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished picture. file: its name in the job's folder. index: from 0, in order of the seeds. infotext: its metadata."""

    index: int
    file: str
    seed: int
    width: int
    height: int
    size: int
    infotext: str | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a job failed. kind: name of the error's class, "Crashed", "OutOfMemoryError", "TimedOut". message: one line.
    asked: what was asked for could not be done (4xx), where otherwise the world was wrong (5xx). lasting: it would fail
    again."""

    kind: str
    message: str
    asked: bool = False
    lasting: bool = True


@dataclass(frozen=True)
class Preview:
    """The current guess of a picture, as a file. number: counts up within a job."""

    number: int
    image: int
    data: bytes
    media_type: str = "image/jpeg"


@dataclass
class Progress:
    """How far a running job is. stage: of `avila_diffusion.Progress`, or "load". image: index of the picture, from 0.
    step of `of` (0 where it is not known): model calls of this picture. fraction: 0 to 1, of the whole job.
    eta: seconds still to go, None where nobody can tell. sigma: noise level of the last call."""

    stage: str = ""
    image: int = 0
    step: int = 0
    of: int = 0
    fraction: float = 0.0
    eta: float | None = None
    sigma: float | None = None


@dataclass(kw_only=True)
class Job:
    """One job. Read it freely on the event loop; only the service changes it.

    request: resolved, nothing left open; of an ended job that was read from disk, without the pictures that were given.
    given: those, by field: name, digest (SHA-256), width, height. client: whose it is. dialect: of the route it came by.
    task: the client's own name for it (A1111's force_task_id). extra: what its dialect wants to find again, plain values.
    created, started, finished: seconds since 1970. results: pictures that are finished, also while it runs. interrupted: it
    was asked to end with what it has. notes: what was not used or used otherwise. report: lines of the model's load report.
    """

    id: str
    number: int
    client: str
    request: GenerateRequest
    using: Using
    state: State = "queued"
    priority: int = 0
    dialect: str = "avila"
    task: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    results: tuple[Result, ...] = ()
    problem: Problem | None = None
    notes: tuple[str, ...] = ()
    report: tuple[str, ...] = ()
    retries: int = 0
    interrupted: bool = False
    skipped: bool = False
    progress: Progress = field(default_factory=Progress)
    preview: Preview | None = field(default=None, repr=False)

    @property
    def images(self) -> int:
        """How many pictures were asked for."""
        return self.request.batch * self.request.count

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled, which it is once and for all."""
        return self.state in ENDED


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. number: counts up within a job, also over restarts of the server.

    kind: "state" (state, position), "progress" (the fields of Progress), "preview" (number, image, media_type, data as
    base64), "picture" (the fields of Result), "note" (text), "end" (state, problem): the last one.
    """

    number: int
    kind: Literal["state", "progress", "preview", "picture", "note", "end"]
    data: Mapping[str, Any]


def given_of(request: GenerateRequest) -> dict[str, dict[str, Any]]:
    """What is told of the pictures that came with a request."""
    found = {name: picture for name in PICTURES if (picture := getattr(request, name)) is not None}
    return {
        name: {"name": one.name, "digest": one.digest, "width": one.size[0], "height": one.size[1]}
        for name, one in found.items()
    }
