"""Picture files opened and decoded: what is read at all, how large it may be, which side is up, what its pixels mean.

numpy and Pillow, no torch. Nothing here touches what a program's threads share, such as the filters of `warnings`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy
import PIL.Image
import PIL.ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from . import exif, image_heads
from .errors import FileProblem

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_READ_PIXELS = 4096 * 4096
"""Larger pictures are not decoded: 20 kB of PNG can hold gigabytes of pixels."""
MAX_READ_BYTES = 256 << 20
"""More than the largest picture in the least compressed form."""

_READ = "PNG, JPEG, WebP, AVIF or GIF"
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its Exif orientation."""

Made = TypeVar("Made")


def file_content(path: Path, name: str, most: int = MAX_READ_BYTES) -> bytes:
    """The bytes of a regular file of at most `most` bytes; pipes and devices, which may never end, are refused.

    name: what errors call it. Raises FileProblem.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise FileProblem(f"{name} cannot be read (it is a pipe or a device, not a file); give a {_READ} file")
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise FileProblem(f"{name} cannot be read ({said}); give a {_READ} file") from None
    if len(data) > most:
        raise FileProblem(f"{name} has more than {most >> 20} MiB; give a {_READ} file")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe waits for somebody to write to it, unless it is told not to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What a decoder raises about damaged bytes, which may be nearly anything, becomes a FileProblem of one line."""
    try:
        yield
    except FileProblem:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise FileProblem(f"{name} is damaged and cannot be decoded ({said}); give another picture") from error


def opened(data: bytes, name: str, *, texts: bool, pixels: bool = True) -> PIL.Image.Image:
    """The picture, its pixels not decoded yet and not more than may be; of an animation the first.

    texts: whether those of a PNG are wanted, which are limited to 1 MiB each. pixels: whether they will be; without them
    the texts behind them are there at once. The Exif block is in its `info`.
    """
    kind = _kind(data)
    if kind is None:
        raise FileProblem(f"{name} is not a {_READ} picture; give one of these")
    block = None
    if kind is PngImageFile:
        data, block = image_heads.read_png(data, texts, pixels)
    elif kind is JpegImageFile:
        data, block = image_heads.read_jpeg(data)
    elif kind is GifImageFile:
        data, size = image_heads.read_gif(data)
        check_size(size, name)
    elif kind is WebPImageFile:  # its decoder reserves room for the whole canvas when it is made
        check_size(image_heads.webp_canvas(data), name)
    # The classes themselves, not PIL.Image.open: that warns about sizes by its own, larger measure.
    picture = kind(io.BytesIO(data))
    check_size(picture.size, name)
    if block is not None:
        picture.info["exif"] = block
    return picture


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises FileProblem for more pixels than are read, and for none."""
    width, height = size
    if not width or not height:
        raise FileProblem(f"{name} is {width}x{height}, without a pixel; give another picture")
    if width * height > MAX_READ_PIXELS:
        most = f"{MAX_READ_PIXELS / 1e6:.1f} million pixels"
        raise FileProblem(f"{name} is {width}x{height}; pictures of up to {most} are read, make it smaller")


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the picture as it is looked at, without decoding its pixels."""
    with reading(name):
        picture = opened(data, name, texts=False)
        width, height = picture.size
        return (height, width) if _orientation(picture) >= 5 else (width, height)


def decoded(data: bytes, name: str, read: Callable[[PIL.Image.Image], Made]) -> Made:
    """What `read` makes of the picture, which it is given decoded and upright."""
    with reading(name):
        return read(upright(opened(data, name, texts=False)))


def upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Decoded, and turned as its Exif says."""
    picture.load()
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def rgb(picture: PIL.Image.Image) -> NDArray[numpy.uint8]:
    """(height, width, 3); transparency is laid on white."""
    return numpy.array(_laid_on_white(picture))


def grey(picture: PIL.Image.Image) -> NDArray[numpy.uint8]:
    """(height, width), the weights of ITU-R 601 as Pillow has them; transparency is laid on white."""
    return numpy.array(_laid_on_white(picture).convert("L"))


def depth(picture: PIL.Image.Image) -> NDArray[numpy.float32]:
    """(height, width), grey values from 0 to 1; those of a file of 16 bits as finely as it has them."""
    if _is_deep(picture):
        return _deep(picture).astype(numpy.float32) / numpy.float32(65535)
    return grey(picture).astype(numpy.float32) / numpy.float32(255)


def alpha(picture: PIL.Image.Image) -> NDArray[numpy.uint8] | None:
    """(height, width), 0 where nothing is seen; None for a picture without transparency."""
    if not picture.has_transparency_data:
        return None
    if _is_deep(picture):  # one grey value is transparent, and Pillow would look for it among 8 bits
        return numpy.where(_deep(picture) == picture.info["transparency"], 0, 255).astype(numpy.uint8)
    return numpy.array(picture.convert("RGBA").getchannel("A"))


def mask(picture: PIL.Image.Image, hard: bool) -> NDArray[numpy.uint8]:
    """(height, width): the alpha of a picture that is not everywhere opaque, else the grey values. See `Picture.mask`."""
    seen = alpha(picture)
    if seen is None or seen.min() == 255:
        return grey(picture)
    return numpy.where(seen > 128, 255, 0).astype(numpy.uint8) if hard else seen


def _kind(data: bytes) -> type[PIL.ImageFile.ImageFile] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    return AvifImageFile if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS else None


def _orientation(picture: PIL.Image.Image) -> int:
    block = picture.info.get("exif")
    turn = exif.read_block(block)[0].get(exif.ORIENTATION) if isinstance(block, bytes) else None
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _laid_on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    if _is_deep(picture):
        high = PIL.Image.fromarray((_deep(picture) >> 8).astype(numpy.uint8))
        clear = alpha(picture)
        white = PIL.Image.new("L", high.size, 255)
        return (high if clear is None else PIL.Image.composite(high, white, PIL.Image.fromarray(clear))).convert("RGB")
    if picture.has_transparency_data:
        white = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _is_deep(picture: PIL.Image.Image) -> bool:
    """Whether it has 16 bits of grey, which Pillow would cut off at 255."""
    return picture.mode.startswith("I")


def _deep(picture: PIL.Image.Image) -> NDArray[numpy.uint16]:
    return numpy.asarray(picture).clip(0, 65535).astype(numpy.uint16)
