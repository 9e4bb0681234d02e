"""txt2img and img2img: a job is submitted, waited for, and answered with its pictures."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import AvilaError
from ..bodies import let_go, read_bytes, read_json
from ..guard import client_of
from ..job import Job
from ..service import Service
from ..submission import KEY, LONGEST_TASK, Submission
from ..waiting import outcome
from .answers import answer, error_answer
from .fields import invalid
from .init_images import NoInitImage
from .mapping import Asked, read_asked
from .mapping import Route as Kind
from .options import Options

KEY_HEADER = "idempotency-key"


def routes(service: Service, options: Options) -> list[Route]:
    """The routes that make pictures."""
    kept = _Generate(service, options)
    return [
        Route("/sdapi/v1/txt2img", kept.txt2img, methods=["POST"]),
        Route("/sdapi/v1/img2img", kept.img2img, methods=["POST"]),
    ]


class _Generate:
    def __init__(self, service: Service, options: Options) -> None:
        self._service = service
        self._options = options

    async def txt2img(self, request: Request) -> Response:
        """Pictures of a prompt."""
        return await self._generate(request, "txt2img")

    async def img2img(self, request: Request) -> Response:
        """Pictures that begin with another one, or a part of it painted anew."""
        try:
            return await self._generate(request, "img2img")
        except NoInitImage as error:
            return error_answer("HTTPException", str(error), 404)

    async def _generate(self, request: Request, route: Kind) -> Response:
        job, asked = await self._submitted(request, route)
        # A client that is gone wants nothing, unless the picture is to be kept or may be asked for again.
        keep = asked.body["save_images"] or KEY_HEADER in request.headers
        job = await outcome(self._service, job, request, keep=keep)
        return await answer(self._service, job, asked)

    async def _submitted(self, request: Request, route: Kind) -> tuple[Job, Asked]:
        """The job, and what is needed to answer with it: not the pictures that came, which the job has."""
        raw = await read_json(request)
        asked = await asyncio.to_thread(read_asked, route, raw, self._options, self._service)
        staying = None
        if not asked.body["override_settings_restore_afterwards"]:
            staying = asked.body["override_settings"] or {}
            self._options.check(staying)
        size = len(await read_bytes(request))
        submission = await asyncio.to_thread(_submission, request, raw, asked, size)
        job = await self._service.submit(submission)
        if staying:
            with suppress(AvilaError):  # what was right a moment ago; the job is made either way
                self._options.change(staying)
        if submission.key is None:  # else it may be the job of an earlier call, and this body is counted nowhere else
            let_go(request)
        return job, replace(asked, values={})


def _submission(request: Request, raw: Mapping[str, Any], asked: Asked, size: int) -> Submission:
    key, task = request.headers.get(KEY_HEADER), asked.body["force_task_id"] or None
    if key is not None and not KEY.fullmatch(key):
        line = "Idempotency-Key must be 1 to 255 printable characters without spaces"
        raise invalid(KEY_HEADER, line, within=("header",))
    if task is not None and len(task) > LONGEST_TASK:
        raise invalid("force_task_id", f"force_task_id has {len(task):,} characters; it may have {LONGEST_TASK}")
    return Submission(
        values=asked.values,
        client=client_of(request),
        model=asked.settled.model,
        vae=asked.settled.vae,
        refiner=asked.refiner,
        dialect="sdapi",
        key=key,
        digest=None if key is None else _digest(asked.route, raw),
        task=task,
        size=size,
        extra={"route": asked.route, "styles": asked.body["styles"] or []},
    )


def _digest(route: Kind, raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([route, raw], sort_keys=True).encode("utf-8", "replace")).hexdigest()
