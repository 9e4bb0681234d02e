"""What the server refuses, beside the package's own errors, and which HTTP status an error is."""

from __future__ import annotations

from ..errors import (
    AvilaError,
    Cancelled,
    DeviceProblem,
    FileProblem,
    ModelNotFound,
    OutputProblem,
    RequestError,
    Unsupported,
)


class QueueFull(AvilaError):
    """No more jobs are taken now. retry_after: seconds, measured, until one might be."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Draining(AvilaError):
    """The server is about to stop and takes no more jobs."""


class NotReady(AvilaError):
    """The worker is being started; in a moment it is there."""


class Conflict(AvilaError):
    """An idempotency key that was used for something else, or a job that is not in the state for what is asked."""


class NoSuchJob(AvilaError):
    """No job of that name, or none of this client's."""


class TooLarge(AvilaError):
    """A body, or a picture in it, above the limits."""


class NotAllowed(AvilaError):
    """Something that this server does not do for anybody: fetching URLs, paths of files."""


class NotOffered(AvilaError):
    """Known to the dialect, and not built here."""


STATUSES: tuple[tuple[type[AvilaError], int], ...] = (
    (QueueFull, 429),
    (Draining, 503),
    (NotReady, 503),
    (Conflict, 409),
    (NoSuchJob, 404),
    (TooLarge, 413),
    (NotAllowed, 403),
    (NotOffered, 501),
    (ModelNotFound, 404),
    (RequestError, 422),
    (Unsupported, 422),
    (FileProblem, 422),
    (DeviceProblem, 500),
    (OutputProblem, 507),
    (Cancelled, 409),
)
"""The first that fits counts; any other AvilaError is 500."""


def status_of(error: AvilaError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
