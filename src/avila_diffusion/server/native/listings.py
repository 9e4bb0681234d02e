"""What can be asked for: samplers, schedules, styles, limits; and a trial of a request that makes no job."""

from __future__ import annotations

import asyncio
import platform
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...checkpoint.folders import find_styles_file
from ...errors import FileProblem
from ...limits import COMPATS, MAX_PIXELS, UPSCALERS
from ...machine import memory
from ...sampling.names import SAMPLERS, SCHEDULES
from ...sampling.rows import sampler_row, schedule_row
from ...text.styles import Style, read_styles
from ...version import __version__
from ..acceptance import examine
from ..fields import request_fields
from ..guard import is_open
from ..job import given_of
from .asking import PRIORITIES, read_submission
from .shapes import FORMATS, PREFIX, request_json, service_of


async def samplers(request: Request) -> Response:
    """All samplers, by every name, with what they cost."""
    return JSONResponse({"samplers": [sampler_row(info) for info in SAMPLERS.values()]})


async def schedules(request: Request) -> Response:
    """All noise schedules, by every name."""
    return JSONResponse({"schedules": [schedule_row(info) for info in SCHEDULES.values()]})


async def upscalers(request: Request) -> Response:
    """How the second pass of a high-resolution fix makes a picture larger."""
    return JSONResponse({"upscalers": [{"name": name, "text": text} for name, text in UPSCALERS.items()]})


async def loras(request: Request) -> Response:
    """LoRA files, with the tag that a prompt names them by."""
    entries = service_of(request).models.entries("lora")
    rows = [
        {"name": one.name, "tag": f"<lora:{one.stem}:1>", "size": one.size, "sha256": one.digest} for one in entries
    ]
    return JSONResponse({"loras": rows})


async def embeddings(request: Request) -> Response:
    """Embeddings (textual inversions), with the word that stands for them."""
    entries = service_of(request).models.entries("embedding")
    rows = [{"name": one.name, "word": one.stem, "size": one.size, "sha256": one.digest} for one in entries]
    return JSONResponse({"embeddings": rows})


async def styles(request: Request) -> Response:
    """The styles of styles.csv, which a client merges into its prompts."""
    found, notes = await asyncio.to_thread(_styles, service_of(request).settings.models_dir)
    return JSONResponse({"styles": [asdict(style) for style in found], "notes": notes})


def _styles(models_dir: str | None) -> tuple[list[Style], list[str]]:
    try:
        path = find_styles_file(models_dir)
    except FileProblem:  # there need not be one
        return [], []
    notes: list[str] = []
    return list(read_styles(path, notes=notes).values()), notes


async def limits(request: Request) -> Response:
    """Every field of a request with its type, range, words and default; and what this server allows."""
    settings = service_of(request).settings
    allowed = settings.limits
    server: dict[str, Any] = {
        "body": allowed.body,
        "pixels": min(allowed.pixels, MAX_PIXELS),
        "pictures": allowed.pictures,
        "steps": allowed.steps,
        "input_pixels": allowed.input_pixels,
        "queue": allowed.queue,
        "per_client": allowed.per_client,
        "streams": allowed.streams,
        "job_seconds": allowed.job_seconds,
        "priority": list(PRIORITIES),
        "preview_every": settings.preview_every,
    }
    return JSONResponse(
        {
            "fields": {field.name: field.to_dict() for field in request_fields()},
            "server": server,
            "samplers": [info.name for info in SAMPLERS.values()],
            "schedules": [info.name for info in SCHEDULES.values()],
            "compats": COMPATS,
            "formats": sorted(FORMATS),
        }
    )


async def validate(request: Request) -> Response:
    """Try a request as POST /jobs would take it: what it becomes, and what it would need. Makes no job."""
    service = service_of(request)
    asked = await read_submission(request)
    resolved, models, needed = await asyncio.to_thread(
        examine, asked, service.models, service.settings, service.default_model, service.default_vae
    )
    told = {"memory": needed.memory, "calls": needed.calls}
    given = await asyncio.to_thread(given_of, resolved)
    return JSONResponse({"request": request_json(resolved) | given, **models.using.to_dict(), "estimate": told})


async def server(request: Request) -> Response:
    """Which server this is, since when it runs, on what."""
    service = service_of(request)
    settings = service.settings
    health = service.health()
    found = memory()
    return JSONResponse(
        {
            "name": "avila",
            "version": __version__,
            "python": platform.python_version(),
            "torch": _version("torch"),
            "started": service.started,
            "uptime": max(0.0, time.time() - service.started),
            "device": settings.device,
            "dtype": settings.dtype,
            "worker": health.worker,
            "worker_memory": health.worker_memory,
            "memory": None if found is None else {"total": found.total, "available": found.available},
            "loaded": service.loaded,
            "default": service.default_model,
            "problem": service.problem(),
            "token": settings.token is not None,
            "open": is_open(settings),
        }
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


ROUTES = [
    Route(f"{PREFIX}/samplers", samplers, methods=["GET"]),
    Route(f"{PREFIX}/schedules", schedules, methods=["GET"]),
    Route(f"{PREFIX}/upscalers", upscalers, methods=["GET"]),
    Route(f"{PREFIX}/loras", loras, methods=["GET"]),
    Route(f"{PREFIX}/embeddings", embeddings, methods=["GET"]),
    Route(f"{PREFIX}/styles", styles, methods=["GET"]),
    Route(f"{PREFIX}/limits", limits, methods=["GET"]),
    Route(f"{PREFIX}/validate", validate, methods=["POST"]),
    Route(f"{PREFIX}/server", server, methods=["GET"]),
]
