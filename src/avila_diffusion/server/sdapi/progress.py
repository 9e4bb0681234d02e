"""How far a client's jobs are, in AUTOMATIC1111's words, and how they are stopped.

There it is one state for the whole server. Here every client sees its own jobs only: another's pictures are not shown, and
another's job is not interrupted.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..bodies import read_json
from ..guard import client_of
from ..job import Job
from ..service import Service
from .fields import Field, read_fields, read_value

BEGUN = 0.01
"""Progress of what has begun: 0 means, to all clients, that nothing is going on."""
_IDLE: dict[str, Any] = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}
_TASK = {"id_task": Field("text"), "id_live_preview": Field("whole", -1), "live_preview": Field("switch", True)}


def routes(service: Service) -> list[Route]:
    """The routes of progress and of stopping."""
    kept = _Progress(service)
    return [
        Route("/sdapi/v1/progress", kept.progress, methods=["GET"]),
        Route("/sdapi/v1/interrupt", kept.interrupt, methods=["POST"]),
        Route("/sdapi/v1/skip", kept.skip, methods=["POST"]),
        Route("/internal/progress", kept.task_progress, methods=["POST"]),
        Route("/internal/pending-tasks", kept.pending, methods=["GET"]),
        Route("/internal/ping", kept.ping, methods=["GET"]),
    ]


class _Progress:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def progress(self, request: Request) -> Response:
        """How far the oldest job of this client's that was begun is, with a preview of its picture."""
        client = client_of(request)
        skip = read_value(
            "skip_current_image",
            request.query_params.get("skip_current_image", "false"),
            Field("switch"),
            within=("query",),
        )
        jobs = self._of(client)
        if not jobs:
            return JSONResponse(_answer(0.0, 0.0, dict(_IDLE), None, None))
        job = jobs[0]
        text = self._place(job) if job.state == "queued" else None
        if job.started is None:
            return JSONResponse(_answer(BEGUN, 0.0, _waiting_state(job), None, text))
        # Of several nobody can tell whose picture the caller means; /internal/progress shows each.
        preview = None if skip or len(jobs) > 1 or job.preview is None else job.preview.data
        image = None if preview is None else base64.b64encode(preview).decode("ascii")
        return JSONResponse(_answer(fraction(job), job.progress.eta or 0.0, state_of(job), image, text))

    async def interrupt(self, request: Request) -> Response:
        """End this client's jobs soon, with what there is: those that were begun, else those that wait."""
        for job in self._of(client_of(request)):
            self._service.interrupt(job)
        return JSONResponse({})

    async def skip(self, request: Request) -> Response:
        """Finish the current picture of this client's jobs early, and go on with the next."""
        for job in self._of(client_of(request)):
            self._service.skip(job)
        return JSONResponse(None)

    async def task_progress(self, request: Request) -> Response:
        """How far the job is that was submitted under a name, force_task_id."""
        body = read_fields(await read_json(request), _TASK)
        task = body["id_task"]
        job = self._service.of_task(task, client_of(request)) if task else None
        begun = job is not None and job.started is not None and job.state in ("running", "queued")
        queued = job is not None and not begun and not job.ended
        told: dict[str, Any] = {
            "active": begun,
            "queued": queued,
            "completed": job is not None and job.ended,
            "progress": None,
            "eta": None,
            "live_preview": None,
            "id_live_preview": -1,
            "textinfo": "Waiting...",
        }
        if job is not None and queued:
            told["textinfo"] = self._place(job)
        if job is None or not begun:
            return JSONResponse(told)
        told |= {"progress": fraction(job), "eta": job.progress.eta, "textinfo": None}
        told["id_live_preview"] = body["id_live_preview"]
        preview = job.preview
        if preview is not None and body["live_preview"] and preview.number != body["id_live_preview"]:
            data = base64.b64encode(preview.data).decode("ascii")
            told |= {"live_preview": f"data:{preview.media_type};base64,{data}", "id_live_preview": preview.number}
        return JSONResponse(told)

    async def pending(self, request: Request) -> Response:
        """Names of this client's tasks that wait."""
        client = client_of(request)
        tasks = [job.task or job.id for job in self._waiting() if job.client == client and job.started is None]
        return JSONResponse({"size": len(tasks), "tasks": tasks})

    async def ping(self, request: Request) -> Response:
        """That the server is there."""
        return JSONResponse({})

    def _of(self, client: str) -> list[Job]:
        """What "the current job" of a client's means: those that were begun, the oldest first; else those that wait, in their
        order. One that was begun waits too, between its parts and while others have their turn; one that was put aside is
        nobody's business here."""
        jobs = [job for job in self._service.live() if job.client == client and job.state != "paused"]
        begun = [job for job in jobs if job.started is not None]
        return sorted(begun, key=lambda job: job.number) or jobs

    def _waiting(self) -> list[Job]:
        return [job for job in self._service.live() if job.state == "queued"]

    def _place(self, job: Job) -> str:
        """Where in the line a job is."""
        if job.state == "paused":
            return "Paused"
        return f"In queue: {self._service.position(job)}/{len(self._waiting())}"


def fraction(job: Job) -> float:
    """0 to 1, and never 0."""
    return min(BEGUN + job.progress.fraction, 1.0)


def state_of(job: Job) -> dict[str, Any]:
    """A running job as AUTOMATIC1111's state: a batch is one of its jobs."""
    return {
        "skipped": job.skipped,
        "interrupted": job.interrupted,
        "stopping_generation": job.interrupted,
        "job": job.task or job.id,
        "job_count": job.request.count,
        "job_timestamp": timestamp(job.started or job.created),
        "job_no": job.progress.image // job.request.batch,
        "sampling_step": job.progress.step,
        "sampling_steps": job.progress.of,
    }


def _waiting_state(job: Job) -> dict[str, Any]:
    """The state while a client's jobs all wait: not idle, and no progress."""
    told = {"job": job.task or job.id, "job_count": job.request.count, "job_timestamp": timestamp(job.created)}
    return _IDLE | told


def timestamp(seconds: float) -> str:
    """A time as AUTOMATIC1111 writes it: 20260131235959."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(seconds))


def _answer(progress: float, eta: float, state: dict[str, Any], image: str | None, text: str | None) -> dict[str, Any]:
    return {"progress": progress, "eta_relative": eta, "state": state, "current_image": image, "textinfo": text}
