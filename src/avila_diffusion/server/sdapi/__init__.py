"""AUTOMATIC1111's HTTP API, as its version 1.10 behaves: /sdapi/v1/… and /internal/…

    fields.py  bodies, brought to their types; mapping.py  a body → what the service takes, with second_pass.py,
    init_images.py and scripts.py; options.py  the options, which hold between calls
    generate.py  txt2img, img2img; answers.py  what they answer; progress.py  how far, and stop
    lists.py  what there is; settings_routes.py  options and models; extras.py  pictures without a model

docs/http-sdapi.md has the routes, the fields, and where this differs from AUTOMATIC1111.
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from ...errors import AvilaError
from ..problems import QueueFull
from ..service import Service
from . import extras, generate, lists, progress, settings_routes
from .answers import error_answer
from .fields import InvalidBody
from .options import Options

__all__ = ["error_response", "routes"]


def routes(service: Service) -> list[BaseRoute]:
    """All routes of this dialect. The options that they set hold for as long as the list is used."""
    options = Options(service)
    return [
        *generate.routes(service, options),
        *progress.routes(service),
        *settings_routes.routes(service, options),
        *extras.routes(service),
        *lists.routes(service),
    ]


def error_response(error: AvilaError, status: int) -> Response:
    """An error in this dialect's shape: for fields of a body {"detail": [{"loc", "msg", "type"}]}, else one line in {"error",
    "detail", "body", "errors"}."""
    if isinstance(error, InvalidBody) and status == 422:
        return JSONResponse({"detail": error.details}, status)
    kind = type(error).__name__
    retry = error.retry_after if isinstance(error, QueueFull) else None
    return error_answer(
        "HTTPException" if kind == "Refused" else kind, " ".join(str(error).split()), status, retry_after=retry
    )
