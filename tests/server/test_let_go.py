"""What a call holds while its job waits: not its body; and what a picture is worth without its metadata."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy
import pytest
from starlette.requests import Request
from starlette.types import Message

from avila_diffusion.errors import RequestError
from avila_diffusion.images import Image, read_image
from avila_diffusion.server.bodies import let_go, parse_object, read_bytes
from avila_diffusion.server.receiving import Incoming
from avila_diffusion.server.settings import Limits
from avila_diffusion.server.waiting import _converted


def test_a_body_that_became_a_job_is_let_go() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 1000, "more_body": False}

    async def story() -> None:
        incoming = Incoming(Limits())
        body = incoming.body(receive, 1 << 20)
        request = Request({"type": "http", "avila.body": body}, body)
        assert len(await read_bytes(request)) == incoming.held == 1000
        let_go(request)
        assert (incoming.held, await read_bytes(request)) == (0, b"")
        body.close()  # as the guard does in the end
        assert incoming.held == 0
        let_go(Request({"type": "http"}, receive))  # of no guard

    asyncio.run(story())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity", "-Infinity"])
def test_numbers_that_cannot_be_written_again_are_none(number: str) -> None:
    with pytest.raises(RequestError, match="the body is no JSON") as caught:
        parse_object(f'{{"x": [{{"y": {number}}}]}}'.encode())
    assert "\n" not in str(caught.value)
    assert parse_object(b'{"x": 1e30, "y": -2.5, "z": 1e-999}') == {"x": 1e30, "y": -2.5, "z": 0.0}


@pytest.mark.parametrize(
    ("infotext", "record", "kept"), [(100, 100, (100, 100)), (100, 70_000, (100, 0)), (70_000, 100, (0, 0))]
)
def test_a_jpeg_has_the_metadata_that_fit(tmp_path: Path, infotext: int, record: int, kept: tuple[int, int]) -> None:
    image = Image(numpy.zeros((8, 8, 3), numpy.uint8), "i" * infotext, record="r" * record)
    path = image.save_png(tmp_path / "a.png")
    made = read_image(_converted(path, "jpeg", 90))
    assert (len(made.infotext or ""), len(made.record or "")) == kept
    whole = read_image(_converted(path, "webp", 90))
    assert (len(whole.infotext or ""), len(whole.record or "")) == (infotext, record)
