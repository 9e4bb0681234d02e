"""What routes that answer with the picture itself share: waiting for a job, its bytes, pictures in requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from starlette.requests import Request

from ..errors import Cancelled, OutputProblem, RequestError
from ..pictures import Picture
from .fetch import fetch
from .job import Job
from .problems import NotAllowed, TooLarge
from .settings import Limits

if TYPE_CHECKING:
    from .service import Service

Format = Literal["png", "jpeg", "webp"]
LOOK_SECONDS = 0.2
CONVERTING = ThreadPoolExecutor(1, "convert")
"""Where pictures are decoded and encoded: one at a time, so that jobs, which are taken in asyncio's own threads, do not wait
for them."""


async def outcome(service: Service, job: Job, request: Request, *, keep: bool) -> Job:
    """The job when it has ended. Where the client goes away before that, and the job is not to be kept, it is cancelled.

    Raises Cancelled then, and Draining where the server stops.
    """
    waiting = asyncio.ensure_future(service.ended(job))
    try:
        while not waiting.done():
            await asyncio.wait([waiting], timeout=LOOK_SECONDS)
            if not waiting.done() and await request.is_disconnected():
                if not keep:
                    await service.cancel(job)
                raise Cancelled("the client went away")
        return waiting.result()
    except asyncio.CancelledError:
        if not keep:
            await asyncio.shield(service.cancel(job))
        raise
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await waiting


async def result_bytes(service: Service, job: Job, index: int, format: Format = "png", quality: int = 90) -> bytes:
    """A finished picture as a file of this format, its metadata in it. Raises NoSuchJob where it is not there."""
    path = service.file(job, index)
    if format == "png":
        return await asyncio.to_thread(path.read_bytes)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(CONVERTING, _converted, path, format, quality)


def _converted(path: Path, format: Format, quality: int) -> bytes:
    from ..images import read_image

    image, name = read_image(path), {"jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}[format]
    # A JPEG holds 64 KiB of metadata, fewer than a prompt may have: the picture is worth more than what it says of itself.
    for kept in (image, replace(image, record=None)):
        with contextlib.suppress(OutputProblem):
            return kept.encoded(name, quality)
    return replace(image, record=None, infotext=None).encoded(name, quality)


def picture_of(text: str, what: str, limits: Limits, fetch_hosts: Collection[str] = ()) -> Picture:
    """A picture from text: base64, or a data: URI; a URL only where its host is in `fetch_hosts`. what: "image", "mask" …

    Fetching blocks: call it off the loop where hosts are allowed. Raises RequestError, FileProblem, TooLarge, NotAllowed.
    """
    start = text[:64].lstrip()
    if start[:8].lower().startswith(("http://", "https://")):
        return check_input(Picture.of(fetch(text.strip(), fetch_hosts), what), what, limits)
    if start[:5].lower() == "data:":
        head, found, text = text.partition(",")
        if not found or ";base64" not in head.lower():
            raise RequestError(f"{what} is a data: URI without base64; give data:image/png;base64,…")
    elif ":" in start[:12]:
        raise NotAllowed(f"{what} is a URL, which this server does not fetch; give the picture itself, in base64")
    text = "".join(text.split())
    text += "=" * (-len(text) % 4)
    return check_input(Picture.from_json({"base64": text}, what), what, limits)


def check_input(picture: Picture, what: str, limits: Limits) -> Picture:
    """The picture, if it has no more pixels than are read; its head alone is looked at. Raises TooLarge."""
    width, height = picture.size
    if width * height > limits.input_pixels:
        raise TooLarge(
            f"{what} is {width}x{height}, {width * height:,} pixels; at most {limits.input_pixels:,} are read: make it smaller"
        )
    return picture
