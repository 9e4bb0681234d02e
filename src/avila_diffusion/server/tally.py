"""What the core tells as it happens, for whoever counts; by default nobody does."""

from __future__ import annotations

from .job import Job


class Tally:
    """Called on the event loop. Every method does nothing here."""

    def accepted(self, job: Job) -> None:
        """A job was committed."""

    def rejected(self, reason: str) -> None:
        """A job was not taken: "queue", "client", "draining", "request", "model", "disk"."""

    def started(self, job: Job, waited: float) -> None:
        """A job's first picture was begun, so many seconds after it was accepted."""

    def ended(self, job: Job, ran: float | None) -> None:
        """A job ended, so many seconds after it was begun; None where it never was."""

    def called(self, job: Job, seconds: float) -> None:
        """One call of the model was made for it."""

    def drawn(self, job: Job) -> None:
        """One of its pictures is finished."""

    def restarted(self, why: str) -> None:
        """The worker process was started again: "crash", "hang", "memory"."""
