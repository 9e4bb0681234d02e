"""The models that the server has, and which one it holds."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...checkpoint.folders import ROLES
from ...errors import RequestError
from ...limits import check_text, shown
from ..bodies import read_json, read_json_or_nothing
from ..entries import Entry
from ..models import Facts
from .shapes import PREFIX, service_of


async def list_models(request: Request) -> Response:
    """All model files by role, and which one is used where none is asked for. role: of one kind only."""
    service = service_of(request)
    role = request.query_params.get("role")
    entries = [entry for one in _roles(role) for entry in service.models.entries(one)]
    return JSONResponse(
        {
            "models": [entry_json(entry) for entry in entries],
            "default": service.default_model,
            "default_vae": service.default_vae,
            "loaded": service.loaded,
        }
    )


async def facts(request: Request) -> Response:
    """What a file's head says: family, size, recommended settings, the lines of `avila inspect`. role: checkpoint."""
    service = service_of(request)
    role = request.query_params.get("role", "checkpoint")
    _roles(role)
    entry = service.models.find(request.path_params["name"], role)
    told = await asyncio.to_thread(service.models.facts, entry)
    return JSONResponse({**entry_json(entry), "file_size": entry.size, **facts_json(told)})


async def rescan(request: Request) -> Response:
    """Look again at what lies in the models folders."""
    service = service_of(request)
    await service.models.scan()
    return JSONResponse({role: len(service.models.entries(role)) for role in ROLES})


async def load(request: Request) -> Response:
    """Load a model now: the named one, which becomes the one that is used where none is asked for, or the default."""
    service = service_of(request)
    body = await read_json_or_nothing(request)
    if not set(body) <= {"model"}:
        raise RequestError(f"unknown member {shown(sorted(set(body) - {'model'})[0])}; send a model's name or nothing")
    name = body.get("model")
    if name is not None:
        check_text("model", name)
        name = service.models.find(name).name
    await service.load(name)
    if name is not None:
        service.default_model = name
    return JSONResponse({"loaded": service.loaded, "default": service.default_model})


async def unload(request: Request) -> Response:
    """Give the memory of the loaded model back; the next job loads it again."""
    service = service_of(request)
    await service.unload()
    return JSONResponse({"loaded": service.loaded, "default": service.default_model})


async def change(request: Request) -> Response:
    """Say what is used where a job names none: {"default": model} and {"default_vae": vae or null}."""
    service = service_of(request)
    body = await read_json(request)
    if not body or not set(body) <= {"default", "default_vae"}:
        raise RequestError('default and default_vae can be changed; send {"default": "name"}')
    named = {}
    for name, role in (("default", "checkpoint"), ("default_vae", "vae")):
        if name not in body or (role == "vae" and body[name] is None):
            continue
        check_text(name, body[name])
        named[name] = service.models.find(body[name], role).name
    # Both names are good, or neither is taken.
    service.default_model = named.get("default", service.default_model)
    if "default_vae" in body:
        service.default_vae = named.get("default_vae")
    return JSONResponse({"default": service.default_model, "default_vae": service.default_vae})


def entry_json(entry: Entry) -> dict[str, Any]:
    """A model file, without where it lies."""
    return {
        "name": entry.name,
        "title": entry.title,
        "role": entry.role,
        "size": entry.size,
        "changed": entry.changed,
        "sha256": entry.digest,
        "short_hash": entry.short_hash,
        "needs_conversion": entry.needs_conversion,
    }


def facts_json(told: Facts) -> dict[str, Any]:
    """What is known of a model file. size: of its pictures, by default."""
    return {
        "family": told.family,
        "variant": told.variant,
        "size": told.size,
        "fixed_size": told.fixed_size,
        "prediction": told.prediction,
        "defaults": dict(told.defaults),
        "lines": list(told.lines),
        "problem": told.problem or None,
    }


def _roles(role: str | None) -> tuple[str, ...]:
    if role is None:
        return ROLES
    if role not in ROLES:
        raise RequestError(f"role {role[:40]!r} is unknown; it is one of {', '.join(ROLES)}")
    return (role,)


ROUTES = [
    Route(f"{PREFIX}/models", list_models, methods=["GET"]),
    Route(f"{PREFIX}/models", change, methods=["PATCH"]),
    Route(f"{PREFIX}/models/rescan", rescan, methods=["POST"]),
    Route(f"{PREFIX}/models/load", load, methods=["POST"]),
    Route(f"{PREFIX}/models/unload", unload, methods=["POST"]),
    Route(f"{PREFIX}/models/{{name:path}}", facts, methods=["GET"]),
]
