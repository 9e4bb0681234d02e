"""Pictures of jobs, finished and in the making; and what a picture says of how it was made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ...errors import RequestError
from ...image_files import upright_size
from ...images import read_texts
from ...metadata import request_of
from ..bodies import read_bytes
from ..problems import NoSuchJob, TooLarge
from ..refusals import Refused
from ..waiting import result_bytes
from .jobs import whole_parameter
from .shapes import FORMATS, PREFIX, job_to_read, service_of

if TYPE_CHECKING:
    from ...metadata import Found

KEPT = "private, max-age=31536000, immutable"
"""For finished pictures: they never change."""


async def image(request: Request) -> Response:
    """A finished picture with its metadata. quality: of JPEG and WebP, by default 90. download=true: as a file to save."""
    service = service_of(request)
    job = await job_to_read(request)
    text, kind = request.path_params["index"], request.path_params["format"]
    if kind not in FORMATS or not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise NoSuchJob(f"there is no such picture; they are 0 to {job.images - 1}, as png, jpg or webp")
    index = int(text)
    quality = whole_parameter(request, "quality", 90, 1, 100)
    path = service.file(job, index)
    seed = next((result.seed for result in job.results if result.index == index), index)
    name = f"{seed}.{kind}"
    download = request.query_params.get("download") in ("1", "true")
    headers = {"Cache-Control": KEPT}
    if kind == "png":
        if not await asyncio.to_thread(Path.is_file, path):
            raise NoSuchJob("the file of this picture is gone")
        disposition = "attachment" if download else "inline"
        return FileResponse(
            path, media_type=FORMATS[kind], headers=headers, filename=name, content_disposition_type=disposition
        )
    data = await result_bytes(service, job, index, "webp" if kind == "webp" else "jpeg", quality)
    if download:
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return Response(data, media_type=FORMATS[kind], headers=headers)


async def preview(request: Request) -> Response:
    """The current guess of the picture that is being drawn."""
    job = await job_to_read(request)
    if job.preview is None:
        raise NoSuchJob("there is no preview of this job now")
    return Response(job.preview.data, media_type=job.preview.media_type, headers={"X-Preview": str(job.preview.number)})


async def metadata(request: Request) -> Response:
    """Read how a picture was made, whichever program wrote it: the body is the file. The values are those of a request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise Refused(415, f"the content type is {kind[:80] or 'not given'!r}; send the picture's, such as image/png")
    data = await read_bytes(request)
    if not data:
        raise RequestError("the body is empty; send the bytes of a picture")
    most = service_of(request).settings.limits.input_pixels
    return JSONResponse(found_json(await asyncio.to_thread(_read, data, most)))


def _read(data: bytes, most: int) -> Found:
    width, height = upright_size(data, "the picture")
    if width * height > most:
        raise TooLarge(f"the picture is {width}x{height}; at most {most:,} pixels are read")
    return request_of(read_texts(data))


def found_json(found: Found) -> dict[str, Any]:
    """What a picture says, LoRA tags back in the prompt, where the engine reads them."""
    values = dict(found.request_values)
    tags = " ".join(lora.tag for lora in found.loras)
    if tags:
        values["prompt"] = f"{values.get('prompt', '')} {tags}".strip()
    return {
        "values": values,
        "program": found.source,
        "version": found.version,
        "model": found.model,
        "model_hash": found.model_hash,
        "vae": found.vae,
        "refiner": found.refiner,
        "pictures": found.pictures,
        "embeddings": found.embeddings,
        "exact": found.exact,
        "notes": list(found.notes),
        "lost": list(found.lost),
        "fields": found.fields,
    }


ROUTES = [
    Route(f"{PREFIX}/jobs/{{id}}/images/{{index}}.{{format}}", image, methods=["GET"]),
    Route(f"{PREFIX}/jobs/{{id}}/preview", preview, methods=["GET"]),
    Route(f"{PREFIX}/metadata", metadata, methods=["POST"]),
]
