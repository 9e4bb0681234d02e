"""The server's own interface, /api/v1: jobs with events, pictures, models, and what a form needs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import BaseRoute

from . import events, health, jobs, listings, models, pictures, sessions
from .shapes import error_response

if TYPE_CHECKING:
    from ..service import Service

__all__ = ["error_response", "routes"]


def routes(service: Service) -> list[BaseRoute]:
    """All routes of this dialect. They reach the service through the application's state."""
    parts = (jobs, events, pictures, models, listings, sessions, health)
    return [route for part in parts for route in part.ROUTES]
