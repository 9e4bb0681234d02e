"""Finished pictures as the API has them: base64 or addresses, and what they cost in its tokens."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import PIL.Image

from ...image_files import opened, reading, rgb, upright
from ...text.tokenizer import clip_tokenizer
from ..job import Job, Result
from ..waiting import result_bytes
from .fields import Asked, Format

if TYPE_CHECKING:
    from ..service import Service

PATCH = 32
"""Pixels of a side of what counts as one token of a picture."""
MEDIA_TYPES: dict[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def quality_of(compression: int) -> int:
    """Pillow's quality, 1 to 100, of the API's `output_compression`, which is that number too, and begins at 0."""
    return max(1, compression)


def file_name(job: Job, index: int, asked: Asked) -> str:
    """Under which a picture is fetched. The job's name is 128 random bits."""
    told = "" if asked.format == "png" else f"-{quality_of(asked.compression)}"
    return f"{job.id}-{index}{told}.{asked.format}"


async def pictures(service: Service, job: Job, asked: Asked, base: str) -> list[dict[str, Any]]:
    """The "data" of an answer. base: what addresses begin with."""
    if asked.url:
        return [{"url": base + file_name(job, one.index, asked), "seed": one.seed} for one in job.results]
    return [{"b64_json": await encoded(service, job, one.index, asked), "seed": one.seed} for one in job.results]


async def encoded(service: Service, job: Job, index: int, asked: Asked) -> str:
    """A finished picture in base64."""
    data = await result_bytes(service, job, index, asked.format, quality_of(asked.compression))
    return (await asyncio.to_thread(base64.b64encode, data)).decode("ascii")


async def preview(data: str, asked: Asked) -> str:
    """A preview, base64 of a small JPEG, in the format that was asked for."""
    return data if asked.format == "jpeg" else await asyncio.to_thread(_converted, data, asked.format)


def _converted(data: str, format_: Format) -> str:
    buffer = io.BytesIO()
    with reading("the preview"):
        pixels = rgb(upright(opened(base64.b64decode(data), "the preview", texts=False)))
    PIL.Image.fromarray(pixels).save(buffer, format_.upper())
    return base64.b64encode(buffer.getvalue()).decode("ascii")


async def usage(job: Job) -> dict[str, Any]:
    """Tokens: CLIP's of the prompts; of pictures one for 32 x 32 pixels."""
    request = job.request
    text = await asyncio.to_thread(_text_tokens, request.prompt, request.negative_prompt)
    given = sum(_patches(*one.size) for one in (request.image, request.mask) if one is not None)
    made = sum(_patches(one.width, one.height) for one in job.results)
    return {
        "input_tokens": text + given,
        "input_tokens_details": {"text_tokens": text, "image_tokens": given},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + given + made,
    }


def _text_tokens(*texts: str) -> int:
    tokenizer = clip_tokenizer()
    return sum(len(tokenizer.encode(text)) for text in texts)


def _patches(width: int, height: int) -> int:
    return -(-width // PATCH) * -(-height // PATCH)


def traits(asked: Asked, result: Result | None) -> Mapping[str, str]:
    """What an answer says of how its pictures are."""
    told = {"background": "opaque", "output_format": asked.format, "quality": asked.told_quality}
    return told if result is None else {**told, "size": f"{result.width}x{result.height}"}
