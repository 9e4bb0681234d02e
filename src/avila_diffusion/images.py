"""Pictures in and out: the `Image` of a result, PNG, JPEG, WebP and AVIF with their metadata, and the sizes models can make.

numpy and Pillow, no torch.
"""

from __future__ import annotations

import errno
import io
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import PIL.features
import PIL.Image
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngInfo

from . import exif
from .errors import OutputProblem, RequestError
from .image_files import file_content, opened, reading, rgb, upright

if TYPE_CHECKING:
    from numpy.typing import NDArray

MULTIPLE = 8
SMALLEST = 64
LONGEST = 4
"""Length to width of the longest picture that is drawn by a model of one size."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
"""What pictures are written as, by the suffix of their names."""
LONGEST_SIDES = {"JPEG": 65_500, "WEBP": 16_383, "AVIF": 65_536}
"""Pixels of a side that the formats, or their encoders, hold at most; a PNG holds more than memory does."""
KEY = "parameters"
"""Name of the PNG text chunk that AUTOMATIC1111 writes its infotext to."""
RECORD_KEY = "avila"
"""Name of the PNG text chunk with our own record."""


@dataclass(frozen=True, eq=False)
class Image:
    """A finished picture.

    pixels: (height, width, 3), uint8, sRGB, read-only. infotext: how it was made, in AUTOMATIC1111's grammar, None for
    a picture without. seed: of its noise, None where it has none. record: what the infotext cannot say, as
    `metadata.record` writes it; saved beside the infotext. texts: all text that a picture which was read carries, by the
    names of its chunks; those of other programs are for reading only and are not saved again.
    """

    pixels: NDArray[numpy.uint8] = field(repr=False)
    infotext: str | None = field(default=None, repr=False)
    seed: int | None = None
    record: str | None = field(default=None, repr=False)
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        pixels: Any = self.pixels
        if not isinstance(pixels, numpy.ndarray) or pixels.dtype != numpy.uint8:
            raise RequestError(f"pixels must be a numpy array of uint8, not {getattr(pixels, 'dtype', type(pixels))}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise RequestError(f"pixels must have the shape (height, width, 3), not {pixels.shape}")
        if pixels.flags.writeable or not pixels.flags.c_contiguous:
            pixels = numpy.array(pixels, order="C")
            pixels.flags.writeable = False
            object.__setattr__(self, "pixels", pixels)

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    def to_numpy(self) -> NDArray[numpy.uint8]:
        """The pixels, (height, width, 3), 0 to 255; a copy that may be changed."""
        return self.pixels.copy()

    def to_pil(self) -> PIL.Image.Image:
        """As a Pillow image of mode RGB; the infotext is in its `info`, where Pillow keeps that of a PNG."""
        picture = PIL.Image.fromarray(self.pixels)
        if self.infotext is not None:
            picture.info[KEY] = self.infotext
        if self.record is not None:
            picture.info[RECORD_KEY] = self.record
        return picture

    def save_png(self, path: str | os.PathLike[str]) -> Path:
        """Write a PNG with the infotext in its text chunk `parameters`; returns its path.

        ".png" is added where it is missing, folders are made. What was there before stays whole until the new file is.
        Raises OutputProblem where it cannot be written.
        """
        target = _file_name(path)
        suffix = target.suffix.lower()
        if suffix != ".png":
            if suffix in FORMATS:
                raise OutputProblem(f"{target} is named as a {FORMATS[suffix]}; use save() or a name that ends in .png")
            target = _file_name(target.with_name(f"{target.name}.png"))
        return _write(target, self.encoded("PNG", 0))

    def save(self, path: str | os.PathLike[str], *, quality: int = 90, overwrite: bool = True) -> Path:
        """Write PNG, JPEG, WebP or AVIF, as the suffix says; PNG without one. Returns the path.

        quality: 1 to 100, of all but PNG. overwrite False: the next free name of `name.png`, `name-1.png` … is
        taken. The infotext is in the Exif user comment of all but PNG. Raises OutputProblem as `save_png`.
        """
        target = _file_name(path)
        if not target.suffix:
            target = _file_name(target.with_name(f"{target.name}.png"))
        suffix = target.suffix.lower()
        if suffix not in FORMATS:
            raise OutputProblem(f"{target} ends in {suffix!r}; a picture can be .png, .jpg, .jpeg, .webp or .avif")
        encoded = self.encoded(FORMATS[suffix], quality)
        if overwrite:
            return _write(target, encoded)
        target = next_free_path(target.parent, target.stem, target.suffix)
        try:
            return _write(target, encoded)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def encoded(self, format_name: str, quality: int = 90) -> bytes:
        """The file's bytes. format_name: "PNG", "JPEG", "WEBP" or "AVIF". Raises OutputProblem where it cannot be made."""
        text, record = _writable(self.infotext), _writable(self.record)
        options: dict[str, Any] = {}
        if format_name == "AVIF" and not PIL.features.check("avif"):
            raise OutputProblem("this Pillow was built without AVIF; name the picture .png, .jpg or .webp")
        check_format(format_name, self.width, self.height)
        if format_name != "PNG":
            options = {"quality": quality, "exif": exif.make_exif(text, record)}
            if format_name == "JPEG" and len(options["exif"]) > exif.MAX_JPEG:
                raise OutputProblem(
                    f"the metadata of {len(text) + len(record):,} characters does not fit a JPEG; save it as PNG or WebP"
                )
        elif text or record:
            options["pnginfo"] = PngInfo()
            for name, value in ((KEY, text), (RECORD_KEY, record)):
                if value:
                    options["pnginfo"].add_text(name, value)
        buffer = io.BytesIO()
        try:
            PIL.Image.fromarray(self.pixels).save(buffer, format_name, **options)
        except (OSError, ValueError, RuntimeError) as error:  # each encoder has its own
            said = " ".join(str(error).split())
            raise OutputProblem(
                f"the picture of {self.width}x{self.height} does not become {_an(format_name)} ({said}); take another format"
            ) from error
        return buffer.getvalue()


def read_image(source: str | os.PathLike[str] | bytes) -> Image:
    """A PNG, JPEG, WebP, AVIF or GIF file, or the bytes of one, with the infotext it carries.

    Turned upright as its Exif says; transparency is laid on white; of an animation the first picture. Raises
    FileProblem for anything else, for damaged files and for more than `image_files.MAX_READ_PIXELS`, refused before
    decoding.
    """
    if isinstance(source, bytes):
        name, data = "the picture", source
    else:
        name, data = str(source), file_content(Path(source), str(source))
    with reading(name):
        picture = opened(data, name, texts=True)
        pixels = rgb(upright(picture))
        texts = _texts(picture)  # now, because a PNG may carry them behind the pixels
    pixels.flags.writeable = False
    return Image(pixels, texts.get(KEY), record=texts.get(RECORD_KEY), texts=texts)


def check_format(format_name: str, width: int, height: int) -> None:
    """Raises OutputProblem for a picture that is larger than files of this format can be."""
    longest = LONGEST_SIDES.get(format_name)
    if longest is not None and max(width, height) > longest:
        raise OutputProblem(
            f"{_an(format_name)} has at most {longest:,} pixels a side, and the picture is {width}x{height}; save it as PNG"
        )


def _an(format_name: str) -> str:
    named = "WebP" if format_name == "WEBP" else format_name
    return f"an {named}" if named == "AVIF" else f"a {named}"


def read_texts(data: bytes) -> dict[str, str]:
    """All text that a picture file carries, by name, as `Image.texts` has it; its pixels are not decoded. Raises FileProblem
    for what is no picture and for more pixels than `read_image` takes."""
    with reading("the picture"):
        return _texts(opened(data, "the picture", texts=True, pixels=False))


def check_model_size(width: int, height: int) -> None:
    """Raises RequestError unless both are sizes that models can make: multiples of 8, at least 64 pixels."""
    for name, size in (("width", width), ("height", height)):
        if size < SMALLEST:
            raise RequestError(f"{name} {size} is too small; the smallest is {SMALLEST}")
        if rest := size % MULTIPLE:
            below = size - rest
            raise RequestError(f"{name} {size} is not a multiple of {MULTIPLE}; {below} or {below + MULTIPLE} would do")


def drawing_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height at which a model that knows only size x size pixels draws a picture of width x height.

    About as many pixels in all, in multiples of 8, as near to the asked proportions as they come.

    >>> drawing_size(512, 500, 128), drawing_size(768, 512, 128), drawing_size(1080, 1920, 128)
    ((128, 128), (168, 112), (104, 184))

    Raises RequestError for a picture more than four times as long as it is wide.
    """
    if max(width, height) > LONGEST * min(width, height):
        most = LONGEST * min(width, height)
        raise RequestError(
            f"{width}x{height} is longer than {LONGEST}:1, the longest that this model draws; ask for at most "
            f"{min(width, most)}x{min(height, most)}"
        )
    sides = range(size // 2 // MULTIPLE * MULTIPLE, 2 * size + 1, MULTIPLE)
    near = [(across, down) for across in sides for down in sides if abs(across * down / size**2 - 1) <= 0.2]

    def distance(sides: tuple[int, int]) -> float:
        across, down = sides
        # Proportions before area, which only decides between much the same ones.
        return abs(math.log(across * height / (down * width))) + 0.05 * abs(math.log(across * down / size**2))

    return min(near, key=distance)


def resize(pixels: NDArray[numpy.uint8], width: int, height: int) -> NDArray[numpy.uint8]:
    """Pixels (h, w, 3) at another size; where the proportions differ, what is over is cut off on both sides alike."""
    down, across = pixels.shape[:2]
    scale = max(width / across, height / down)
    left, top = (max(side - kept / scale, 0.0) / 2 for side, kept in ((across, width), (down, height)))
    # By eye, on pictures of 128 pixels enlarged to 512: bicubic is a little softer, and an unsharp mask that makes up for
    # it darkens the rims of light things.
    picture = PIL.Image.fromarray(pixels).resize(
        (width, height), PIL.Image.Resampling.LANCZOS, box=(left, top, across - left, down - top)
    )
    return numpy.asarray(picture)


def next_free_path(folder: str | os.PathLike[str], stem: str, suffix: str = ".png") -> Path:
    """The first of `stem.png`, `stem-1.png`, `stem-2.png` … that does not exist, made as an empty file.

    Making it takes the name: no other thread or process is given the same. Raises OutputProblem.
    """
    number = 0
    while True:
        target = Path(folder) / (f"{stem}-{number}{suffix}" if number else f"{stem}{suffix}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.open("xb").close()
            return target
        except FileExistsError:
            if not target.parent.is_dir():
                raise OutputProblem(f"{target.parent} is a file, not a folder; choose another folder") from None
            number += 1
        except (OSError, ValueError) as error:
            raise _not_written(target, error) from None


def _file_name(path: str | os.PathLike[str]) -> Path:
    """The path, unless it is that of a folder: "outputs" then is a name that is missing, not outputs.png beside it."""
    target = Path(path)
    try:
        folder = target.is_dir() or not target.name
    except (OSError, ValueError):  # a name that nothing can have; writing says why
        folder = False
    if folder:
        raise OutputProblem(f"{target} is a folder; give a file name such as {target / 'picture.png'}")
    return target


def _write(target: Path, data: bytes) -> Path:
    """All or nothing: a file of another name in the same folder takes the place of `target` when it is complete."""
    partial = target.with_name(f".avila-{secrets.token_hex(8)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # else a power cut may leave the new name with nothing in it
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        raise _not_written(target, error) from None
    return target


def _writable(text: str | None) -> str:
    """Text without lone surrogates, which cannot be written to any file."""
    return (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _not_written(target: Path, error: OSError | ValueError) -> OutputProblem:
    number = error.errno if isinstance(error, OSError) else None
    said = getattr(error, "strerror", None) or error
    if number in (errno.ENOSPC, errno.EDQUOT):
        return OutputProblem(f"{target} was not written: the disk is full ({said}); free some space")
    if number in (errno.EEXIST, errno.ENOTDIR):
        return OutputProblem(f"{target} was not written: part of its folder is a file ({said}); choose another folder")
    return OutputProblem(f"{target} was not written ({said}); choose another folder or name")


def _texts(picture: PIL.Image.Image) -> dict[str, str]:
    """All text beside the pixels, by name; the infotext as "parameters", our own record as "avila"."""
    # Chunks, and what decoders add: a GIF's comment is bytes, and "comment" of a JPEG is none of Exif's.
    texts = {str(name): str(text) for name, text in picture.info.items() if isinstance(text, str)}
    comment = picture.info.get("comment")
    if isinstance(comment, bytes):
        texts["comment"] = comment.decode("utf-8", "replace").strip("\0")
    texts = {name: text for name, text in _exif_texts(picture).items() if text} | texts
    said = texts.get("comment", "")
    if said and (isinstance(picture, GifImageFile) or "Steps: " in said):  # cameras and editors write others to a JPEG
        texts.setdefault(KEY, said)  # where AUTOMATIC1111 reads and writes it
    return texts


def _exif_texts(picture: PIL.Image.Image) -> dict[str, str | None]:
    main, inner = exif.read_block(_exif_block(picture))
    return {
        KEY: exif.read_comment(inner.get(exif.USER_COMMENT)),
        RECORD_KEY: exif.read_note(inner.get(exif.MAKER_NOTE)),
        **dict(exif.read_named(main)),
    }


def _exif_block(picture: PIL.Image.Image) -> bytes:
    block = picture.info.get("exif")
    profile = picture.info.get("Raw profile type exif")  # ImageMagick's, in a PNG: name, length, then hex digits
    if not isinstance(block, bytes) and isinstance(profile, str):
        try:
            return bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return b""
    return block if isinstance(block, bytes) else b""
