"""The routes that draw: generations, edits, variations; and the files that their answers name."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ...errors import AvilaError, Cancelled
from ..bodies import let_go, read_form, read_json
from ..guard import client_of
from ..job import Job
from ..problems import NoSuchJob
from ..service import Service
from ..settings import Limits
from ..submission import KEY, Submission
from ..waiting import result_bytes
from . import answers
from .errors import BadField, error_response, failed_response
from .fields import FILES, Asked, Format, Given, read
from .flights import RETRY_HEADER, CallerGone, Flight, Flights, digest_of, present
from .masks import VARIATION_STRENGTH, edit_values, read_picture
from .streams import Stream

GENERATION, EDIT = "image_generation", "image_edit"
FOLDER = "v1/images/files/"
_FILE = re.compile(r"(?P<job>[0-9a-f]{32})-(?P<index>\d{1,4})(?:-(?P<quality>\d{1,3}))?\.(?P<format>png|jpeg|webp)")


def routes(flights: Flights) -> list[BaseRoute]:
    """Everything below /v1/images."""
    calls = Calls(flights)
    return [
        Route("/v1/images/generations", calls.generations, methods=["POST"]),
        Route("/v1/images/edits", calls.edits, methods=["POST"]),
        Route("/v1/images/variations", calls.variations, methods=["POST"]),
        Route("/v1/images/files/{name}", file, methods=["GET"]),
    ]


class Calls:
    """The three calls."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights

    async def generations(self, request: Request) -> Response:
        """A prompt becomes pictures."""
        given = await read_json(request)
        return await self._answered(request, read(Given(given)), {}, GENERATION)

    async def edits(self, request: Request) -> Response:
        """A picture and a prompt become pictures; a mask says where."""
        form = await read_form(request)
        asked = read(Given(_texts(form), form=True), known=FILES)
        files = await _files(form, ("image", "mask"))
        if "image" not in files:
            raise BadField(
                "image", "image is missing; send the picture that is to be changed", "missing_required_parameter"
            )
        values = await asyncio.to_thread(_edit, files, request.app.state.service.settings.limits)
        return await self._answered(
            request,
            replace(asked, values=values | dict(asked.values)),
            {name: data for name, (data, _) in files.items()},
            EDIT,
        )

    async def variations(self, request: Request) -> Response:
        """A picture becomes others like it, without a prompt."""
        form = await read_form(request)
        asked = read(Given(_texts(form), form=True), prompt=False, known=("image", "image[]"))
        files = await _files(form, ("image",))
        if "image" not in files:
            raise BadField("image", "image is missing; send the picture to vary", "missing_required_parameter")
        limits = request.app.state.service.settings.limits
        picture = await asyncio.to_thread(read_picture, "image", *files["image"], limits)
        values = {"image": picture, "strength": VARIATION_STRENGTH, **asked.values}
        data = {name: data for name, (data, _) in files.items()}
        return await self._answered(request, replace(asked, values=values), data, EDIT)

    async def _answered(self, request: Request, asked: Asked, files: Mapping[str, bytes], kind: str) -> Response:
        """Have it drawn, and answer in one piece or in a stream."""
        service: Service = request.app.state.service
        digest = await asyncio.to_thread(digest_of, request.url.path, asked.kept, files)
        if asked.stream:
            self._flights.stream()
        streaming = False
        flight = None
        delivered = False
        try:
            flight = await self._boarded(request, service, asked, files, digest)
            job = await present(request, asyncio.shield(flight.job))
            if asked.stream:
                streaming = True
                return Stream(self._flights, flight, request, job, asked, kind)
            await present(request, service.ended(job))
            delivered = True
            return await _complete(service, request, job, asked)
        except CallerGone:
            return Response(status_code=499)
        except AvilaError:
            delivered = True
            raise
        finally:
            if not streaming:
                self._flights.streams -= int(asked.stream)
                if flight is not None:
                    self._flights.leave(flight, delivered=delivered)

    async def _boarded(
        self, request: Request, service: Service, asked: Asked, files: Mapping[str, bytes], digest: str
    ) -> Flight:
        """A place on the job of this call, or on that of an equal one."""
        client, key = client_of(request), _key(request)

        async def make() -> Job:
            job = await service.submit(await _submission(service, client, asked, files, key, digest))
            if key is None:  # else it may be the job of an earlier call, and this body is counted nowhere else
                let_go(request)
            return job

        seeded = asked.values.get("seed", -1) >= 0
        repeated = request.headers.get(RETRY_HEADER, "0") != "0"
        return self._flights.board((client, digest), make, shared=seeded or repeated, keep=key is not None)


def _edit(files: Mapping[str, tuple[bytes, str | None]], limits: Limits) -> dict[str, Any]:
    """Fields of a request, of a form's files."""
    pictures = {name: read_picture(name, *one, limits) for name, one in files.items()}
    return edit_values(pictures["image"], pictures.get("mask"))


async def _submission(
    service: Service, client: str, asked: Asked, files: Mapping[str, bytes], key: str | None, digest: str
) -> Submission:
    """What the service is asked. Raises as `ModelIndex.find` and `facts`."""
    entry = service.models.find(asked.model or service.default_model)
    facts = await service.models.facts_of(entry)
    steps = asked.steps_of(facts.defaults.get("steps"))
    return Submission(
        values={**asked.values, "steps": steps},
        client=client,
        model=entry.name,
        dialect="openai",
        key=key,
        digest=digest,
        size=sum(map(len, files.values())) + sum(len(str(value)) for value in asked.kept.values()),
    )


async def _complete(service: Service, request: Request, job: Job, asked: Asked) -> Response:
    """The answer of a job that has ended."""
    if job.state == "failed":
        assert job.problem is not None
        return failed_response(job.problem)
    if job.state == "cancelled" or not job.results:
        return error_response(Cancelled("the job was cancelled before a picture was finished"), 409)
    content: dict[str, Any] = {
        "created": int(job.created),
        "data": await answers.pictures(service, job, asked, f"{request.base_url}{FOLDER}"),
        **answers.traits(asked, job.results[0]),
        "usage": await answers.usage(job),
    }
    # Megabytes of base64: not on the event loop.
    return await asyncio.to_thread(JSONResponse, content, headers={"x-request-id": job.id, "cache-control": "no-store"})


async def file(request: Request) -> Response:
    """A finished picture by the name that an answer gave it, for whoever knows it. Raises NoSuchJob."""
    service: Service = request.app.state.service
    found = _FILE.fullmatch(request.path_params["name"])
    if found is None:
        raise NoSuchJob("there is no such file; the addresses in answers are those that there are")
    job = await service.find(found["job"])
    format_: Format = "jpeg" if found["format"] == "jpeg" else "webp" if found["format"] == "webp" else "png"
    quality = min(max(int(found["quality"] or 90), 1), 100)
    data = await result_bytes(service, job, int(found["index"]), format_, quality)
    headers = {"cache-control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=answers.MEDIA_TYPES[format_], headers=headers)


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not KEY.fullmatch(key):
        raise BadField("Idempotency-Key", "Idempotency-Key must be 1 to 255 printable characters without spaces")
    return key


def _texts(form: FormData) -> dict[str, Any]:
    """The fields of a form; of its files only that they are there."""
    return {name: value if isinstance(value, str) else "" for name, value in form.multi_items()}


async def _files(form: FormData, names: tuple[str, ...]) -> dict[str, tuple[bytes, str | None]]:
    """name → bytes and the file's own name. Raises BadField for texts, and for more than one."""
    found: dict[str, tuple[bytes, str | None]] = {}
    for name, value in form.multi_items():
        plain = name.removesuffix("[]")
        if plain not in names:
            continue
        if not isinstance(value, UploadFile):
            raise BadField(plain, f"{plain} must be a file of the form, not text; addresses are not fetched here")
        if plain in found:
            raise BadField(plain, f"{plain} is there more than once; one picture can be worked on at a time")
        found[plain] = (await value.read(), value.filename)
    return found
