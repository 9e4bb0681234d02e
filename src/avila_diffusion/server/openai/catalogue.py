"""The models, as OpenAI's clients list them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..entries import Entry
from ..problems import NotOffered
from ..service import Service
from .fields import model_name


def routes() -> list[BaseRoute]:
    """GET /v1/models and /v1/models/{id}; deleting is answered, and not done."""
    return [
        Route("/v1/models", listed, methods=["GET"]),
        Route("/v1/models/{id:path}", retrieved, methods=["GET"]),
        Route("/v1/models/{id:path}", deleted, methods=["DELETE"]),
    ]


async def listed(request: Request) -> Response:
    """All checkpoints that can be used as they are, the default one first."""
    service: Service = request.app.state.service
    entries = [one for one in service.models.entries() if not one.needs_conversion]
    entries.sort(key=lambda one: one.name != service.default_model)
    return JSONResponse({"object": "list", "data": [_model(one, service) for one in entries]})


async def retrieved(request: Request) -> Response:
    """One of them, by any of its names; OpenAI's own names mean the default one. Raises ModelNotFound."""
    service: Service = request.app.state.service
    if not request.path_params["id"]:  # GET /v1/models/, as some programs join addresses
        return await listed(request)
    name = model_name(request.path_params["id"]) or service.default_model
    return JSONResponse(_model(service.models.find(name), service))


async def deleted(request: Request) -> Response:
    """Raises NotOffered."""
    raise NotOffered("models are files in the server's models folder; none are deleted from here")


def _model(entry: Entry, service: Service) -> dict[str, Any]:
    created = int(entry.changed or service.started)
    owner = "avila" if entry.name in ("bundled", "procedural") else "local"
    return {"id": entry.name, "object": "model", "created": created, "owned_by": owner}
