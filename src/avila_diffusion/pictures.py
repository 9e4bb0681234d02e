"""Pictures that are given to a run, to begin from, to keep in part or to follow: each kept as the bytes of a file.

Importing this loads neither numpy nor Pillow: a request holds a picture long before anything looks at its pixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RequestError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

MAX_BYTES = 64 << 20
"""Of a picture that is given to a run."""


class Picture:
    """The bytes of an image file, with the name that it came by.

    It cannot be changed, and two are equal where their bytes are, whatever their names. What is in the bytes is read when
    it is asked for; all that reads them raises FileProblem for damaged files and other files, and for more pixels than
    `image_files.MAX_READ_PIXELS`, refused before they are decoded. Upright means: turned as the file's Exif says.

    >>> picture = Picture.of(bytes.fromhex("89504e47"), "image")
    Traceback (most recent call last):
    avila_diffusion.errors.FileProblem: image is not a PNG, JPEG, WebP, AVIF or GIF picture; give one of these
    """

    __slots__ = ("_data", "_digest", "_name", "_size", "_what")

    def __init__(self, data: bytes, name: str | None = None) -> None:
        """data: of a PNG, JPEG, WebP, AVIF or GIF file, not looked into yet. Raises RequestError for another type."""
        for given, kind in ((data, bytes), (name, str | None)):
            if not isinstance(given, kind):
                told = type(given).__name__
                raise RequestError(
                    f"a picture is made of bytes and a name, not of {told}; Picture.of takes other things"
                )
        if len(data) > MAX_BYTES:
            raise RequestError(f"a picture of {len(data) >> 20:,} MiB is too large; at most {MAX_BYTES >> 20} are read")
        self._data = data
        self._name = name
        self._what = "the picture"
        self._size: tuple[int, int] | None = None
        self._digest: str | None = None

    @classmethod
    def of(cls, value: object, what: str) -> Picture:
        """A picture from whatever callers have. what: "image", "mask", "depth"; errors begin with it.

        value: a Picture, returned as it is; a path, whose file is read now, at most 64 MiB; the bytes of a file; an
        `Image`; a Pillow image; or an array or tensor as `pixel_arrays.png_of` takes them. That it is a picture is seen from
        its head, the pixels are not decoded. Raises RequestError for another type and for arrays that are no pixels,
        FileProblem for files.
        """
        if isinstance(value, Picture):
            return value
        if isinstance(value, str | os.PathLike):
            from .image_files import file_content

            if not (name := os.fsdecode(value)):
                raise RequestError(f"{what} is an empty name; give the path of a picture")
            path = Path(name)
            picture = cls(file_content(path, f"{what} {_one_line(str(path))}", MAX_BYTES), path.name)
        elif isinstance(value, bytes | bytearray | memoryview):
            if len(value) > MAX_BYTES:
                raise RequestError(f"{what} has more than {MAX_BYTES >> 20} MiB; give a smaller file")
            picture = cls(bytes(value))
        else:
            from .images import Image
            from .pixel_arrays import png_of

            picture = cls(png_of(value.pixels if isinstance(value, Image) else value, what))
        return picture._checked(what)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], what: str = "picture") -> Picture:
        """The picture that `to_json` wrote. Errors begin with `what`.

        Raises RequestError for another table and FileProblem where the bytes are not those of a picture.
        """
        if not isinstance(values, Mapping) or "base64" not in values or not set(values) <= {"name", "base64"}:
            raise RequestError(f"{what} must be a table of base64, the bytes of an image file, and perhaps a name")
        text, name = values["base64"], values.get("name")
        if not isinstance(text, str) or not isinstance(name, str | None):
            raise RequestError(f"{what}: base64 must be text, and name too where there is one")
        if len(text) > MAX_BYTES // 3 * 4 + 4:
            raise RequestError(f"{what} has more than {MAX_BYTES >> 20} MiB; give a smaller file")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(f"{what}: base64 cannot be decoded ({error})") from None
        return cls(data, name)._checked(what)

    def to_json(self) -> dict[str, str | None]:
        """As JSON has it: {"name": …, "base64": …}."""
        return {"name": self._name, "base64": base64.b64encode(self._data).decode("ascii")}

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return self._data

    @property
    def name(self) -> str | None:
        """The file's name without its folders, None where it came without."""
        return self._name

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, upright; from the head of the file, without decoding it."""
        if self._size is None:
            from .image_files import upright_size

            self._size = upright_size(self._data, self._label)
        return self._size

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        if self._digest is None:
            self._digest = hashlib.sha256(self._data).hexdigest()
        return self._digest

    def rgb(self) -> NDArray[numpy.uint8]:
        """(height, width, 3), sRGB, upright; transparency is laid on white."""
        from .image_files import decoded, rgb

        return decoded(self._data, self._label, rgb)

    def alpha(self) -> NDArray[numpy.uint8] | None:
        """(height, width), upright, 0 where nothing is seen; None for a picture that has no transparency."""
        from .image_files import alpha, decoded

        return decoded(self._data, self._label, alpha)

    def mask(self, hard: bool = True) -> NDArray[numpy.uint8]:
        """(height, width), upright, 255 where a mask lets change: as AUTOMATIC1111 reads one.

        Of a picture that is not everywhere opaque its alpha, hard: 255 where that is over 128, else 0. Of any other its
        grey values, in which white is what changes.
        """
        from .image_files import decoded, mask

        return decoded(self._data, self._label, partial(mask, hard=hard))

    def depth(self) -> NDArray[numpy.float32]:
        """(height, width), upright, grey values from 0 to 1; those of 16-bit files as finely as they have them."""
        from .image_files import decoded, depth

        return decoded(self._data, self._label, depth)

    def __eq__(self, other: object) -> bool:
        return self._data == other._data if isinstance(other, Picture) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def __copy__(self) -> Picture:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Picture:
        return self

    def __reduce__(self) -> tuple[type[Picture], tuple[bytes, str | None]]:
        return Picture, (self._data, self._name)

    def __repr__(self) -> str:
        return f"Picture({self._name or 'without a name'!s:.80}, {len(self._data):,} bytes)"

    @property
    def _label(self) -> str:
        """What errors call it: one line, whatever is in the name."""
        return f"{self._what} {_one_line(self._name or '')[:80]}".strip()

    def _checked(self, what: str) -> Picture:
        """Itself, once its head was read."""
        self._what = what
        self._size = self.size
        return self


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
