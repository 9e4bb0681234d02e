"""What a finished job becomes: the pictures, AUTOMATIC1111's info about them, the request as it was understood."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse, Response

from ...errors import AvilaError
from ...infotext import VERSION, read
from ..job import Job
from ..service import Service
from ..waiting import result_bytes
from .mapping import Asked
from .progress import timestamp

_CORE = frozenset(
    (
        "Steps",
        "Sampler",
        "CFG scale",
        "Seed",
        "Size-1",
        "Size-2",
        "Model hash",
        "Model",
        "VAE hash",
        "VAE",
        "Variation seed",
        "Variation seed strength",
        "Seed resize from-1",
        "Seed resize from-2",
        "Denoising strength",
        "Clip skip",
        "Version",
    )
)
"""Fields of an infotext that info has by names of its own; the others are its extra_generation_params."""


async def answer(service: Service, job: Job, asked: Asked) -> Response:
    """The answer to txt2img and img2img. A job that failed is an error, 422 where what was asked for was why."""
    # One that was interrupted before it had a picture is none: AUTOMATIC1111 answers what there is.
    if job.state == "failed" or (job.state == "cancelled" and not job.results and not job.interrupted):
        return failure(job)
    images = []
    if asked.body["send_images"]:
        settled = asked.settled
        for result in job.results:
            data = await result_bytes(service, job, result.index, settled.format, settled.quality)
            images.append(data)
    inpainting = await _is_inpainting(service, job)
    # Megabytes of base64: not on the event loop.
    content = await asyncio.to_thread(_content, images, job, asked, inpainting)
    return Response(content, media_type="application/json")


def failure(job: Job) -> JSONResponse:
    """A job that did not end well. error is its kind: clients look for "OutOfMemoryError"."""
    problem = job.problem
    if problem is None:
        return error_answer("Cancelled", "the job was cancelled before it had a picture; send it again", 409)
    status = 504 if problem.kind == "TimedOut" else 422 if problem.asked else 500
    return error_answer(problem.kind, problem.message, status)


def error_answer(kind: str, message: str, status: int, *, retry_after: float | None = None) -> JSONResponse:
    """An error as AUTOMATIC1111's API tells it."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    told = {"error": kind, "detail": message, "body": "", "errors": message}
    return JSONResponse(told, status, headers=headers)


def _content(images: Sequence[bytes], job: Job, asked: Asked, inpainting: bool) -> bytes:
    told = {
        "images": [base64.b64encode(image).decode("ascii") for image in images],
        "parameters": dict(asked.body.values),
        "info": json.dumps(info(job, asked, inpainting), ensure_ascii=False),
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def info(job: Job, asked: Asked, inpainting: bool = False) -> dict[str, Any]:
    """What AUTOMATIC1111 tells of a finished run."""
    request, results = job.request, job.results
    fields = read(results[0].infotext or "").fields if results else {}
    seeds = [result.seed for result in results] or [request.seed or 0]
    asked_subseed = asked.body["subseed"]
    subseeds = [
        asked_subseed if seed is None else seed
        for seed in (request.variation_seeds[result.index] for result in results)
    ] or [asked_subseed]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": request.variation_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": request.batch,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": fields.get("Model") or job.using.model,
        "sd_model_hash": fields.get("Model hash") or "",
        "sd_vae_name": fields.get("VAE") or job.using.vae,
        "sd_vae_hash": fields.get("VAE hash"),
        "seed_resize_from_w": request.seed_width or -1,
        "seed_resize_from_h": request.seed_height or -1,
        "denoising_strength": request.strength if request.image is not None or request.hires else None,
        "extra_generation_params": _extra(fields),
        "index_of_first_image": 0,
        "infotexts": [result.infotext or "" for result in results],
        "styles": asked.body["styles"] or [],
        "job_timestamp": timestamp(job.created),
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": inpainting,
        "version": VERSION,
    }


def _extra(fields: dict[str, str]) -> dict[str, str]:
    """The other fields, sizes put together again."""
    told = {}
    for name, value in fields.items():
        if name in _CORE or name.endswith("-2"):
            continue
        if name.endswith("-1"):
            told[name[:-2]] = f"{value}x{fields.get(f'{name[:-2]}-2', '')}"
        else:
            told[name] = value
    return told


async def _is_inpainting(service: Service, job: Job) -> bool:
    """Whether the model looks at the mask itself."""
    if not job.request.masked:
        return False
    with suppress(AvilaError):
        facts = await service.models.facts_of(service.models.find(job.using.model))
        return facts.variant == "inpainting"
    return False
