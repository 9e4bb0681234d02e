"""Pictures without a model: transparency, and how much is done at once."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy
import PIL.Image
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from avila_diffusion.errors import AvilaError
from avila_diffusion.images import read_image
from avila_diffusion.pictures import Picture
from avila_diffusion.server import sdapi
from avila_diffusion.server.problems import status_of
from avila_diffusion.server.sdapi import extras
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits, Settings


@dataclass
class Desk:
    settings: Settings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data=tmp_path, limits=Limits(pixels=64 * 64))

    def told(request: Request, error: Exception) -> Response:
        assert isinstance(error, AvilaError) and not isinstance(error, HTTPException)
        return sdapi.error_response(error, status_of(error))

    routes = extras.routes(cast(Service, Desk(settings)))
    with TestClient(Starlette(routes=routes, exception_handlers={AvilaError: told})) as made:
        yield made


def encoded(picture: PIL.Image.Image, **more: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **more)
    return base64.b64encode(buffer.getvalue()).decode()


def glass() -> PIL.Image.Image:
    """Half of it is not there."""
    picture = PIL.Image.new("RGBA", (16, 8), (200, 100, 50, 255))
    picture.paste((10, 20, 30, 0), (0, 0, 8, 8))
    return picture


def enlarged(client: TestClient, given: str, **more: Any) -> PIL.Image.Image:
    answer = client.post("/sdapi/v1/extra-single-image", json={"image": given, "upscaler_1": "Nearest", **more})
    assert answer.status_code == 200, answer.text
    return PIL.Image.open(io.BytesIO(base64.b64decode(answer.json()["image"])))


@pytest.mark.parametrize("more", [{}, {"upscaler_1": "Lanczos"}, {"upscaler_1": "None"}, {"upscaler_2": "Lanczos"}])
def test_transparency_is_kept(client: TestClient, more: dict[str, Any]) -> None:
    made = enlarged(client, encoded(glass()), extras_upscaler_2_visibility=0.5, **more)
    across, down = made.size
    assert made.mode == "RGBA"
    assert made.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert made.getpixel((across - 1, down - 1)) == (200, 100, 50, 255)


def test_transparency_of_other_kinds(client: TestClient) -> None:
    pixels = numpy.zeros((8, 16), numpy.uint16)
    pixels[:, 8:] = 0x8000
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", transparency=0)
    made = enlarged(client, base64.b64encode(buffer.getvalue()).decode())
    assert (made.mode, made.size) == ("RGBA", (32, 16))
    assert [made.getpixel(at)[3] for at in ((0, 0), (31, 0))] == [0, 255]  # type: ignore[index]
    assert made.getpixel((31, 0)) == (128, 128, 128, 255)
    listed = glass().convert("P")
    assert enlarged(client, encoded(listed, transparency=listed.getpixel((0, 0)))).mode == "RGBA"
    assert enlarged(client, encoded(glass().convert("RGB"))).mode == "RGB"


def test_a_picture_for_pillow_is_the_one_that_was_read() -> None:
    picture = Picture.of(base64.b64decode(encoded(glass().convert("RGB"))), "image")
    image = read_image(picture.data)
    assert numpy.array_equal(numpy.asarray(extras._decoded(picture, image)), image.pixels)


def batch(client: TestClient, count: int, **more: Any) -> Any:
    pictures = [{"data": encoded(PIL.Image.new("RGB", (32, 32))), "name": "x"}] * count
    return client.post("/sdapi/v1/extra-batch-images", json={"imageList": pictures, "upscaler_1": "Nearest", **more})


def test_a_batch_is_bounded_as_a_whole(client: TestClient) -> None:
    made = batch(client, extras.TOGETHER)
    assert made.status_code == 200
    assert len(made.json()["images"]) == extras.TOGETHER
    refused = batch(client, extras.TOGETHER + 1)
    assert refused.status_code == 422
    assert "5 pictures would have 20,480 pixels; at most 16,384 are made at once" in refused.json()["detail"]
    assert "the picture would be 96x96" in batch(client, 1, upscaling_resize=3).json()["detail"]


def test_a_batch_ends_with_its_caller(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(request: Request) -> bool:
        return True

    monkeypatch.setattr(Request, "is_disconnected", gone)
    monkeypatch.setattr(extras, "_resize", None)  # nothing is made any more
    assert batch(client, 2).json()["error"] == "Cancelled"


def test_what_a_picture_of_novelai_says(client: TestClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    comment = {
        "steps": 28,
        "sampler": "k_euler_ancestral",
        "seed": 5,
        "scale": 11.0,
        "uc": "lowres",
        "width": 512,
        "height": 768,
    }
    for name, text in (("Software", "NovelAI"), ("Description", "a cat"), ("Comment", json.dumps(comment))):
        said.add_text(name, text)
    told = client.post("/sdapi/v1/png-info", json={"image": encoded(glass(), pnginfo=said)}).json()
    lines = "a cat\nNegative prompt: lowres\nSteps: 28, Sampler: Euler a, CFG scale: 11.0, Seed: 5, Size: 512x768"
    assert told["info"] == f"{lines}, Clip skip: 2, ENSD: 31337"
    assert told["parameters"]["Sampler"] == "Euler a" and told["items"]["Software"] == "NovelAI"


def test_what_a_picture_says(client: TestClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_text("parameters", "a hill é\nSteps: 5, Sampler: Euler, Seed: 1")
    told = client.post("/sdapi/v1/png-info", json={"image": encoded(glass(), pnginfo=said)}).json()
    assert told["parameters"]["Prompt"] == "a hill é"
