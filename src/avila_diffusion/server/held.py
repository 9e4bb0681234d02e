"""A live job with what only the core knows of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .dispatch import Place
from .events import EventLog
from .job import Job
from .rows import Stamps


@dataclass(eq=False)
class Held:
    """A live job with what only the core knows of it. stamps: of its files when it was accepted. unit: name of the part that
    the worker has in hand. reached: the furthest place it was ever at (part, picture, decoding, call): a journal that is read
    again does not count. moved: it got further since it was last taken in hand. ending: it is about to end. committing: a
    part of it is drawn and on its way to the disk. killed: how often the worker was killed at it from outside. mark: when, and
    how far, it was after the first call of its part."""

    job: Job
    place: Place
    log: EventLog
    stamps: Stamps
    size: int
    deadline: float | None
    folder: Path
    unit: str | None = None
    moved: bool = False
    reached: tuple[int, int, bool, int] = (0, 0, False, 0)
    ending: bool = False
    committing: bool = False
    killed: int = 0
    mark: tuple[float, float] | None = None

    def say_state(self, position: int | None = None) -> None:
        """Tell who follows it."""
        self.log.add("state", {"state": self.job.state, "position": position})
