"""Which jobs the worker has in hand: one of each client, all of one model; and when another model's turn comes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from .job import Job, Using

AT_ONCE = 8
"""Clients whose jobs take turns, call by call; others wait until one of them has a picture finished."""
LOAD_TIMES = 5.0
"""A model stays at least so many times what loading it took while there is work for it."""


@dataclass
class Place:
    """A job's place in the line. parts: that are done of `of`. passed: how often a shorter one of the same client went before.
    using: None where it needs no model."""

    job: Job
    of: int
    parts: int = 0
    passed: int = 0
    using: Using | None = None

    @property
    def rank(self) -> tuple[float, float, int]:
        """Among its client's own: by priority, then what is soon done (what was passed often counts as shorter), by age."""
        return -self.job.priority, (self.of - self.parts) / (1 + self.passed), self.job.number


@dataclass
class Line:
    """What is known beside the jobs. using: what the worker holds, None for nothing. since: when it was loaded; seconds: what
    that took. served: the order in which clients were last given a unit."""

    using: Using | None = None
    since: float = 0.0
    seconds: float = 0.0
    served: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    def serve(self, client: str) -> None:
        """A unit of this client begins."""
        self._count += 1
        self.served.pop(client, None)
        self.served[client] = self._count
        while len(self.served) > 4096:
            del self.served[next(iter(self.served))]

    def holding(self, using: Using, now: float, seconds: float) -> None:
        """This is loaded now."""
        self.using, self.since, self.seconds = using, now, seconds

    def to_load(self, places: Iterable[Place], now: float) -> Using | None:
        """What is to be loaded now in place of what is there; None: nothing."""
        others = [place for place in places if place.using is not None and place.using != self.using]
        if not others:
            return None
        here = self.using is not None and any(place.using == self.using for place in places)
        if here and now - self.since < LOAD_TIMES * self.seconds:
            return None
        return min(others, key=lambda place: (self.served.get(place.job.client, 0), place.rank)).using

    def to_begin(self, places: Sequence[Place], active: Collection[str]) -> list[Place]:
        """The jobs whose next part begins now. active: clients that have one in hand."""
        best: dict[str, Place] = {}
        for place in sorted(places, key=lambda place: place.rank):
            if place.using is None or place.using == self.using:
                best.setdefault(place.job.client, place)
        waiting = [client for client in best if client not in active]
        waiting.sort(key=lambda client: (self.served.get(client, 0), best[client].job.number))
        chosen = [best[client] for client in waiting[: max(AT_ONCE - len(active), 0)]]
        for place in chosen:
            for other in places:
                if other.job.client == place.job.client and other.job.number < place.job.number:
                    other.passed += other.job.priority == place.job.priority
        return chosen
