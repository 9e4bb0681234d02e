"""What jobs, pictures and errors look like in this dialect's JSON."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...errors import AvilaError
from ...request import PICTURES, GenerateRequest
from ..guard import client_of, is_open
from ..job import Job, Result

if TYPE_CHECKING:
    from ..service import Service

PREFIX = "/api/v1"
FIELDS = frozenset(field.name for field in fields(GenerateRequest))
FORMATS = {"png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp"}


def error_response(error: AvilaError, status: int) -> Response:
    """An error: what kind, one line, the status once more, and the field of the request that it begins with, if any."""
    message = " ".join(str(error).split()) or type(error).__name__
    told: dict[str, Any] = {"kind": type(error).__name__, "message": message, "status": status}
    field = message.partition(" ")[0].rstrip(":")
    if field in FIELDS:
        told["field"] = field
    return JSONResponse({"error": told}, status)


def service_of(request: Request) -> Service:
    """The service behind the application."""
    service: Service = request.app.state.service
    return service


async def job_to_read(request: Request) -> Job:
    """The job that the path names, as far as this caller may see it. Raises NoSuchJob."""
    service = service_of(request)
    everybody = is_open(service.settings)
    return await service.find(request.path_params["id"], None if everybody else client_of(request))


async def job_to_change(request: Request) -> Job:
    """The job that the path names, where it is this caller's. Raises NoSuchJob."""
    return await service_of(request).find(request.path_params["id"], client_of(request))


def job_json(service: Service, job: Job) -> dict[str, Any]:
    """A job, pictures of its request by name and digest."""
    return {
        "id": job.id,
        "number": job.number,
        "state": job.state,
        "client": job.client,
        "dialect": job.dialect,
        "task": job.task,
        **job.using.to_dict(),
        "priority": job.priority,
        "request": {**request_json(job.request), **job.given},
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "position": None if job.ended else service.position(job),
        "images": job.images,
        "progress": asdict(job.progress),
        "preview": preview_json(job),
        "results": [result_json(job, result) for result in job.results],
        "problem": None if job.problem is None else asdict(job.problem),
        "notes": list(job.notes),
        "report": list(job.report),
        "retries": job.retries,
        "interrupted": job.interrupted,
        "skipped": job.skipped,
        "url": f"{PREFIX}/jobs/{job.id}",
    }


def preview_json(job: Job) -> dict[str, Any] | None:
    """Where the current preview is."""
    if job.preview is None or job.ended:
        return None
    number = job.preview.number
    return {"number": number, "image": job.preview.image, "url": f"{PREFIX}/jobs/{job.id}/preview?number={number}"}


def result_json(job: Job, result: Result) -> dict[str, Any]:
    """A finished picture."""
    return {
        "index": result.index,
        "seed": result.seed,
        "width": result.width,
        "height": result.height,
        "size": result.size,
        "infotext": result.infotext,
        "url": f"{PREFIX}/jobs/{job.id}/images/{result.index}.png",
    }


def request_json(request: GenerateRequest) -> dict[str, Any]:
    """A request without its pictures, which are told of by `Job.given`."""
    return {field.name: None if field.name in PICTURES else getattr(request, field.name) for field in fields(request)}
