"""What is refused before any dialect looks at it, each with its own HTTP status."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import AvilaError
from .problems import QueueFull, status_of


class Refused(AvilaError):
    """A call that HTTP itself, or who may call, does not let through. headers: what the answer carries beside."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class Incident(AvilaError):
    """Something unforeseen; the number stands in the server's log beside the traceback."""


def status_and_headers(error: AvilaError) -> tuple[int, dict[str, str]]:
    """The HTTP status of any error, and the headers that go with it."""
    if isinstance(error, Refused):
        return error.status, error.headers
    if isinstance(error, QueueFull):
        return status_of(error), {"Retry-After": str(max(1, round(error.retry_after)))}
    return status_of(error), {"Retry-After": "10"} if status_of(error) == 503 else {}
