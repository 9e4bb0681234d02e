"""OpenAI's image API, as its own clients speak it: /v1/images/generations, /edits, /variations, /v1/models.

    fields.py     what the fields of a call are, and what becomes of them
    masks.py      OpenAI's masks as ours
    images.py     the routes that draw; streams.py  the same as server-sent events
    flights.py    equal calls that are one job, and jobs whose callers went away
    answers.py    pictures and counts as the API has them; errors.py  errors, and whether to try again
    catalogue.py  the models

The behaviour is that of openai-python 3.57 and of the API's published reference; docs/http-openai.md lists what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import catalogue, images
from .errors import error_response
from .flights import Flights

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from ..service import Service

__all__ = ["error_response", "routes"]


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this dialect."""
    return [*images.routes(Flights(service)), *catalogue.routes()]
