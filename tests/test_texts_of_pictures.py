"""Texts read without pixels are those that are read with them."""

import io
import struct
import zlib
from pathlib import Path

import numpy
import PIL.Image
import pytest

from avila_diffusion.errors import FileProblem
from avila_diffusion.images import Image, read_image, read_texts
from avila_diffusion.metadata import read_request, request_of

FOLDER = Path(__file__).parent / "metadata"
INFOTEXT = "a lighthouse, dusk é\nNegative prompt: fog\nSteps: 12, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64"


def made(format_name: str) -> bytes:
    pixels = numpy.zeros((16, 24, 3), numpy.uint8)
    return Image(pixels, INFOTEXT, record='{"version": 1}').encoded(format_name)


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_what_we_write(format_name: str) -> None:
    data = made(format_name)
    assert read_texts(data) == read_image(data).texts
    assert request_of(read_texts(data)) == read_request(read_image(data))
    assert request_of(read_texts(data)).request_values["seed"] == 7


@pytest.mark.parametrize("name", ["a1111.png", "a1111.jpg", "bad_text_after_idat.png", "invokeai.png"])
def test_what_others_write(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    assert read_texts(data) == read_image(data).texts


def test_a_gif() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("P", (8, 8)).save(buffer, "GIF", comment=INFOTEXT.encode())
    assert read_texts(buffer.getvalue()) == read_image(buffer.getvalue()).texts
    assert "parameters" in read_texts(buffer.getvalue())


def test_a_text_behind_the_pixels() -> None:
    data = made("PNG")
    body = b"parameters\0" + b"behind"
    late = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    plain = Image(numpy.zeros((8, 8, 3), numpy.uint8)).encoded("PNG")
    assert read_texts(plain[:-12] + late + plain[-12:]) == {"parameters": "behind"}
    assert read_texts(data[:-12] + late + data[-12:]) == read_image(data[:-12] + late + data[-12:]).texts


def test_pixels_are_not_looked_at() -> None:
    """A picture whose pixels are damaged still says how it was made."""
    data = made("PNG")
    place = data.index(b"IDAT") + 6
    damaged = data[:place] + bytes(10) + data[place + 10 :]
    assert read_texts(damaged) == read_texts(data)
    with pytest.raises(FileProblem):
        read_image(damaged)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", made("PNG")[:40], made("WEBP")[:20]])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(FileProblem) as caught:
        read_texts(data)
    assert "\n" not in str(caught.value)
