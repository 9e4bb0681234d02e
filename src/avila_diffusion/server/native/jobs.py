"""Jobs: asked for, listed, looked at, stopped."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import RequestError
from ...limits import check_whole
from ..bodies import read_json
from ..guard import client_of, is_open
from ..job import Job, State
from ..problems import NotAllowed
from .asking import check_priority, read_submission
from .shapes import PREFIX, job_json, job_to_change, job_to_read, service_of

if TYPE_CHECKING:
    from ..service import Service

STATES: tuple[State, ...] = get_args(State)
MOST_LISTED = 500
_WHOLE = re.compile(r"-?[0-9]{1,19}")


async def create(request: Request) -> Response:
    """Ask for a job. It is on disk when this answers. The same Idempotency-Key with the same body is the same job."""
    service = service_of(request)
    asked = await read_submission(request)
    before = time.time()
    job = await service.submit(asked)
    known = asked.key is not None and job.created < before
    return _shown(service, job, 200 if known else 202, {"Location": f"{PREFIX}/jobs/{job.id}"})


async def list_jobs(request: Request) -> Response:
    """The caller's jobs, newest first; with all=true everybody's, on a server that is open to one person."""
    service = service_of(request)
    client: str | None = client_of(request)
    if _flag(request, "all"):
        if not is_open(service.settings):
            raise NotAllowed("this server shows everybody their own jobs only; leave out all")
        client = None
    states = [part for text in request.query_params.getlist("state") for part in text.split(",") if part]
    wrong = [state for state in states if state not in STATES]
    if wrong:
        raise RequestError(f"state {wrong[0][:40]!r} is unknown; it is one of {', '.join(STATES)}")
    limit = whole_parameter(request, "limit", 50, 1, MOST_LISTED)
    before = whole_parameter(request, "before", None, 0, 2**63 - 1)
    found = await service.list(
        client, states=[state for state in STATES if state in states], limit=limit, before=before
    )
    following = found[-1].number if len(found) == limit else None
    return JSONResponse({"jobs": [job_json(service, job) for job in found], "next": following})


async def read(request: Request) -> Response:
    """A job as it is now."""
    return _shown(service_of(request), await job_to_read(request))


async def delete(request: Request) -> Response:
    """Forget a job that has ended, with its pictures."""
    await service_of(request).delete(await job_to_change(request))
    return Response(status_code=204)


async def change(request: Request) -> Response:
    """Change the priority of a job."""
    service = service_of(request)
    job = await job_to_change(request)
    body = await read_json(request)
    if set(body) != {"priority"}:
        raise RequestError('priority alone can be changed; send {"priority": 10}')
    check_priority(body["priority"])
    return _shown(service, await service.prioritise(job, body["priority"]))


async def cancel(request: Request) -> Response:
    """Stop a job; no picture that is not finished comes of it."""
    service = service_of(request)
    return _shown(service, await service.cancel(await job_to_change(request)))


async def interrupt(request: Request) -> Response:
    """End a job with what there is: the current picture is finished early."""
    service = service_of(request)
    job = await job_to_change(request)
    service.interrupt(job)
    return _shown(service, job)


async def skip(request: Request) -> Response:
    """Finish the current picture early and go on with the next."""
    service = service_of(request)
    job = await job_to_change(request)
    service.skip(job)
    return _shown(service, job)


async def pause(request: Request) -> Response:
    """Hold a job, what is finished of it kept."""
    service = service_of(request)
    return _shown(service, await service.pause(await job_to_change(request)))


async def resume(request: Request) -> Response:
    """Let a paused job go on."""
    service = service_of(request)
    return _shown(service, await service.resume(await job_to_change(request)))


async def queue(request: Request) -> Response:
    """What is being served, in order: the caller's jobs in full, of others' their state and place."""
    service = service_of(request)
    client = None if is_open(service.settings) else client_of(request)
    health = service.health()
    rows: list[dict[str, Any]] = []
    for position, job in enumerate(service.live()):
        mine = client is None or job.client == client
        rows.append(
            job_json(service, job) if mine else {"state": job.state, "position": position, "images": job.images}
        )
    counts = {"queued": health.queued, "running": health.running, "paused": health.paused}
    limits = service.settings.limits
    full = service.full(client_of(request))
    return JSONResponse(
        {
            "jobs": rows,
            **counts,
            "limit": limits.queue,
            "per_client": limits.per_client,
            "full": None if full is None else {"message": str(full), "retry_after": full.retry_after},
        }
    )


def _shown(service: Service, job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(job_json(service, job), status, headers)


def _flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false."""
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise RequestError(f"{name} is {text[:40]!r}; it must be true or false")
    return text in ("true", "1")


def whole_parameter(request: Request, name: str, default: Any, low: int, high: int) -> Any:
    """A query parameter that is a whole number."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if _WHOLE.fullmatch(text) is None:
        raise RequestError(f"{name} is {text[:40]!r}; it must be a whole number")
    check_whole(name, int(text), low, high)
    return int(text)


_JOB = f"{PREFIX}/jobs/{{id}}"
ROUTES = [
    Route(f"{PREFIX}/jobs", create, methods=["POST"]),
    Route(f"{PREFIX}/jobs", list_jobs, methods=["GET"]),
    Route(_JOB, read, methods=["GET"]),
    Route(_JOB, delete, methods=["DELETE"]),
    Route(_JOB, change, methods=["PATCH"]),
    *(Route(f"{_JOB}/{do.__name__}", do, methods=["POST"]) for do in (cancel, interrupt, skip, pause, resume)),
    Route(f"{PREFIX}/queue", queue, methods=["GET"]),
]
