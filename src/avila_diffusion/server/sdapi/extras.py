"""Pictures without a model: enlarged, and read for how they were made."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
from PIL.PngImagePlugin import PngInfo
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...errors import Cancelled, RequestError
from ...image_files import alpha, opened, reading, upright
from ...images import KEY, RECORD_KEY, Image, read_image, read_texts
from ...infotext import read, write_fields
from ...limits import shown
from ...metadata.novelai import read_novelai
from ...pictures import Picture
from ...sampling.names import resolve_sampler
from ..bodies import read_json
from ..problems import NotOffered
from ..service import Service
from ..waiting import picture_of
from .fields import Body, Field, invalid, read_fields
from .lists import PICTURE_UPSCALERS

FACES = ("gfpgan_visibility", "codeformer_visibility")
SHARE = Field("number", 0.0, 0.0, 1.0)
EXTRAS: dict[str, Field] = {
    "resize_mode": Field("whole", 0, 0, 1),
    "show_extras_results": Field("switch", True),
    "gfpgan_visibility": SHARE,
    "codeformer_visibility": SHARE,
    "codeformer_weight": SHARE,
    "upscaling_resize": Field("number", 2.0, 0.01, 16.0),
    "upscaling_resize_w": Field("whole", 512, 0, 65_536),
    "upscaling_resize_h": Field("whole", 512, 0, 65_536),
    "upscaling_crop": Field("switch", True),
    "upscaler_1": Field("text", "None"),
    "upscaler_2": Field("text", "None"),
    "extras_upscaler_2_visibility": SHARE,
    "upscale_first": Field("switch", False),
}
SINGLE = EXTRAS | {"image": Field("text", "")}
BATCH = EXTRAS | {"imageList": Field("list", [])}
TOGETHER = 4
"""Pixels of a batch, in pictures of the largest size."""
_FILTERS = {"Lanczos": PIL.Image.Resampling.LANCZOS, "Nearest": PIL.Image.Resampling.NEAREST}
_DEFAULTS = {
    "Schedule type": "Automatic",
    "Clip skip": "1",
    "RNG": "GPU",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
}
"""What an infotext means that does not say it; only where it says anything."""


def routes(service: Service) -> list[Route]:
    """The routes that need no model."""
    kept = _Extras(service)
    return [
        Route("/sdapi/v1/extra-single-image", kept.single, methods=["POST"]),
        Route("/sdapi/v1/extra-batch-images", kept.batch, methods=["POST"]),
        Route("/sdapi/v1/png-info", kept.info, methods=["POST"]),
    ]


class _Extras:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._turn = asyncio.Lock()  # one at a time: a large picture takes a core and a hundred megabytes
        self._batch = asyncio.Lock()  # likewise, for what it holds until its last picture

    async def single(self, request: Request) -> Response:
        """A picture enlarged."""
        body = read_fields(await read_json(request), SINGLE)
        resizing = _resizing(body)
        if not body["image"].strip():
            raise invalid("image", "image is missing; send a picture as base64", "value_error.missing")
        picture = await self._picture(body["image"], "image")
        resizing.check([picture.size], self._service.settings.limits.pixels)
        made, told = await self._resized(picture, resizing)
        return await _answer({"html_info": told, "image": made})

    async def batch(self, request: Request) -> Response:
        """Several pictures enlarged alike."""
        body = read_fields(await read_json(request), BATCH)
        resizing = _resizing(body)
        limits = self._service.settings.limits
        if len(body["imageList"]) > limits.pictures:
            message = f"imageList has {len(body['imageList'])} pictures; at most {limits.pictures} are taken at once"
            raise invalid("imageList", message)
        pictures = [
            await self._picture(_data_of(given, index), f"imageList[{index}]")
            for index, given in enumerate(body["imageList"])
        ]
        resizing.check([picture.size for picture in pictures], limits.pixels)
        images, infos = [], []
        async with self._batch:
            for picture in pictures:
                if await request.is_disconnected():
                    raise Cancelled("the client went away")
                made, told = await self._resized(picture, resizing)
                images.append(made)
                infos.append(told)
        return await _answer({"html_info": "".join(infos), "images": images})

    async def info(self, request: Request) -> Response:
        """How a picture was made, as far as it says so."""
        body = read_fields(await read_json(request), {"image": Field("text", "")})
        if not body["image"].strip():
            return JSONResponse({"info": "", "items": {}, "parameters": {}})
        picture = await self._picture(body["image"], "image")
        return await _answer(await asyncio.to_thread(lambda: told_by(read_texts(picture.data))))

    async def _picture(self, text: str, what: str) -> Picture:
        settings = self._service.settings
        return await asyncio.to_thread(picture_of, text, what, settings.limits, settings.fetch_hosts)

    async def _resized(self, picture: Picture, resizing: Resizing) -> tuple[str, str]:
        """(the picture as base64 of a PNG, what was done as HTML)."""
        async with self._turn:
            return await asyncio.to_thread(_resize, picture, resizing)


@dataclass(frozen=True)
class Resizing:
    """What is done to a picture. first, second: names of upscalers, None for none; share: of the second in the result.
    scale: times its size; or None, and then width and height in pixels (0: as the other one has it), cut to them or not."""

    first: str | None
    second: str | None
    share: float
    scale: float | None
    width: int
    height: int
    crop: bool

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that a picture of this size is enlarged to, before it is cut."""
        across, down = size
        scale = self.scale
        if scale is None:
            scale = max(self.width / across, self.height / down)
        return max(round(across * scale), 1), max(round(down * scale), 1)

    def check(self, sizes: Sequence[tuple[int, int]], most: int) -> None:
        """Raises RequestError where one result would have more than `most` pixels, or all together more than TOGETHER times
        as many: they are held until the last one is made."""
        made = list(sizes) if self.first is None else [self.size(size) for size in sizes]
        for width, height in made:
            if width * height > most:
                raise RequestError(f"the picture would be {width:,}x{height:,}; at most {most:,} pixels are made")
        area = sum(width * height for width, height in made)
        if area > TOGETHER * most:
            raise RequestError(
                f"the {len(made)} pictures would have {area:,} pixels; at most {TOGETHER * most:,} are made at once, send fewer"
            )

    def apply(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """The picture, enlarged and cut."""
        if self.first is None:
            return picture
        size = self.size(picture.size)
        made = picture.resize(size, _FILTERS[self.first])
        if self.second is not None and self.share:
            made = PIL.Image.blend(made, picture.resize(size, _FILTERS[self.second]), self.share)
        if self.scale is not None or not self.crop or not (self.width and self.height):
            return made
        left, top = (made.width - self.width) // 2, (made.height - self.height) // 2
        return made.crop((left, top, left + self.width, top + self.height))

    def told(self) -> str:
        """What is done, in the words of an infotext."""
        if self.first is None:
            return ""
        to = f"by: {self.scale:g}" if self.scale is not None else f"to: {self.width}x{self.height}"
        both = "" if self.second is None or not self.share else f", Postprocess upscaler 2: {self.second}"
        return f"Postprocess upscale {to}, Postprocess upscaler: {self.first}{both}"


def _resizing(body: Body) -> Resizing:
    for name in FACES:
        if body[name]:
            raise NotOffered(f"{name} is {body[name]:g}, and no faces are restored here; leave it at 0")
    first, second = (_upscaler(name, body[name]) for name in ("upscaler_1", "upscaler_2"))
    to_size = body["resize_mode"] == 1
    if to_size and not (body["upscaling_resize_w"] or body["upscaling_resize_h"]):
        raise invalid(
            "upscaling_resize_w", "upscaling_resize_w and upscaling_resize_h are 0; give one of them in pixels"
        )
    return Resizing(
        first,
        second,
        body["extras_upscaler_2_visibility"],
        None if to_size else body["upscaling_resize"],
        body["upscaling_resize_w"],
        body["upscaling_resize_h"],
        body["upscaling_crop"],
    )


def _upscaler(field: str, name: str) -> str | None:
    for known in PICTURE_UPSCALERS:
        if known.casefold() == name.strip().casefold() or not name.strip():
            return None if known == "None" else known
    raise invalid(field, f"{field} is {shown(name)}; there are {', '.join(PICTURE_UPSCALERS)}")


def _data_of(given: Any, index: int) -> str:
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, str) or not data.strip():
        message = (
            f"imageList[{index}] is {shown(given)}; expected an object with data, a picture as base64, and its name"
        )
        raise invalid("imageList", message)
    return data


def _resize(picture: Picture, resizing: Resizing) -> tuple[str, str]:
    image = read_image(picture.data)
    text = ", ".join(filter(None, (image.infotext, resizing.told())))
    chunks = PngInfo()
    if text:  # our own record is left behind: it tells how to make the picture at its old size
        chunks.add_text(KEY, text)
    buffer = io.BytesIO()
    resizing.apply(_decoded(picture, image)).save(buffer, "PNG", pnginfo=chunks)
    told = html.escape(text).replace("\n", "<br>\n")
    return base64.b64encode(buffer.getvalue()).decode("ascii"), f"<p>{told}</p>" if told else ""


def _decoded(picture: Picture, image: Image) -> PIL.Image.Image:
    """The picture for Pillow, with its transparency, which `read_image` lays on white."""
    with reading("the picture"):
        found = opened(picture.data, "the picture", texts=False)
        if not found.has_transparency_data:
            return PIL.Image.fromarray(image.pixels)
        found = upright(found)
        clear = alpha(found)
        # Pillow cuts 16 bits of grey off when it converts them.
        colours = (
            PIL.Image.fromarray(image.pixels) if found.mode.startswith("I") else found.convert("RGBA").convert("RGB")
        )
        if clear is not None:
            colours.putalpha(PIL.Image.fromarray(clear))
        return colours


async def _answer(told: Mapping[str, Any]) -> Response:
    """Megabytes of base64: not on the event loop."""
    content = await asyncio.to_thread(json.dumps, told, ensure_ascii=False, separators=(",", ":"))
    return Response(await asyncio.to_thread(content.encode, "utf-8", "replace"), media_type="application/json")


def told_by(texts: Mapping[str, str]) -> dict[str, Any]:
    """What a picture says of itself: its infotext, all its texts, and the infotext taken apart. texts: see `read_texts`."""
    infotext = texts.get(KEY, "") or _of_novelai(texts)
    items: Mapping[str, str] = {name: text for name, text in texts.items() if name != RECORD_KEY}
    parameters: dict[str, str] = {}
    if infotext:
        parsed = read(infotext)
        parameters = {"Prompt": parsed.prompt, "Negative prompt": parsed.negative_prompt, **_DEFAULTS, **parsed.fields}
    return {"info": infotext, "items": dict(items), "parameters": parameters}


def _of_novelai(texts: Mapping[str, str]) -> str:
    """A NovelAI picture's record as an infotext, as AUTOMATIC1111 tells it; "" for others."""
    draft = read_novelai(texts)
    if draft is None:
        return ""
    told = draft.finish().request_values
    sampler = told.get("sampler")
    width, height = told.get("width"), told.get("height")
    fields = {
        "Steps": told.get("steps"),
        "Sampler": None if sampler is None else resolve_sampler(sampler)[0].name,
        "CFG scale": told.get("guidance_scale"),
        "Seed": told.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Clip skip": told.get("clip_skip"),
        "ENSD": told.get("ensd"),
    }
    return write_fields(told.get("prompt", ""), told.get("negative_prompt", ""), fields)
