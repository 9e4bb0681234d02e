"""The Exif block of a picture, made and read. No Pillow, no torch.

JPEG, WebP and AVIF carry in it how they were made, and the pictures of cameras which side is up.

The infotext is the user comment, in UTF-16, where AUTOMATIC1111 writes and reads it. What only we read is the maker note,
which the standard leaves to whoever made the picture and every other reader passes over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

IFD = 0x8769
ORIENTATION = 0x0112
USER_COMMENT, MAKER_NOTE = 0x9286, 0x927C
TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131)
"""Description, make, model and software: ComfyUI writes `prompt:{…}` and `workflow:{…}` to make, model and their like."""
MAX_JPEG = 65533
"""Bytes in one JPEG segment."""

_UTF16, _ASCII, _JIS = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0"
_HEAD = b"Exif\0\0"
_NOTE = b"avila\0"
_UNDEFINED = 7
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}
"""Bytes of a value of the types that are read: BYTE, ASCII, SHORT, LONG and UNDEFINED."""
_ASCII_TYPE, _WHOLE_TYPES = 2, {3: "H", 4: "I"}


def make_exif(comment: str, note: str) -> bytes:
    """A block with a user comment and a maker note, each where it is not empty; b"" without either.

    By hand because Pillow gives both the type BYTE, which piexif, and so AUTOMATIC1111, cannot read.
    """
    values = {}
    if note:
        values[MAKER_NOTE] = _NOTE + note.encode()
    if comment:
        values[USER_COMMENT] = _UTF16 + comment.encode("utf-16-be")
    if not values:
        return b""
    header = _HEAD + b"MM\0*" + struct.pack(">I", 8)
    directory = struct.pack(">HHHIII", 1, IFD, 4, 1, 26, 0)
    place = 26 + 2 + 12 * len(values) + 4
    entries: list[bytes] = []
    content: list[bytes] = []
    for tag, value in values.items():  # in rising order, as the standard wants them
        entries.append(struct.pack(">HHII", tag, _UNDEFINED, len(value), place))
        content.append(value + b"\0" * (len(value) % 2 if len(content) + 1 < len(values) else 0))
        place += len(content[-1])
    return b"".join([header, directory, struct.pack(">H", len(values)), *entries, bytes(4), *content])


def read_block(block: bytes) -> tuple[dict[int, object], dict[int, object]]:
    """The values of a block by their tags: (of its first directory, of the one for Exif).

    Texts are str, bytes are bytes, of whole numbers the first. Whatever cannot be read is passed over without a word: a
    damaged block harms no picture. Pillow, which reads more, warns on stderr, and in every thread of the program.
    """
    block = block.removeprefix(_HEAD).removeprefix(_HEAD)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return {}, {}
    main = _directory(block, order, struct.unpack(order + "I", block[4:8])[0])
    place = main.get(IFD)
    return main, _directory(block, order, place) if isinstance(place, int) else {}


def _directory(block: bytes, order: str, start: int) -> dict[int, object]:
    values: dict[int, object] = {}
    left = len(block)  # for all values together: else thousands of entries could each name the same megabytes
    count = int.from_bytes(block[start : start + 2], "little" if order == "<" else "big")
    for place in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, number, offset = struct.unpack(order + "HHII", block[place : place + 12])
        size = _SIZES.get(kind, 0) * number
        begin = place + 8 if size <= 4 else offset
        if not 0 < size <= left or begin + size > len(block) or tag in values:
            continue
        left -= size
        content = block[begin : begin + size]
        if kind in _WHOLE_TYPES:
            values[tag] = struct.unpack_from(order + _WHOLE_TYPES[kind], content)[0]
        else:
            values[tag] = content.removesuffix(b"\0").decode("latin-1") if kind == _ASCII_TYPE else content
    return values


def read_comment(comment: object) -> str | None:
    """The text of a user comment as Pillow gives it, None where there is none."""
    if isinstance(comment, str):
        return comment or None
    if not isinstance(comment, bytes):
        return None
    head, body = comment[:8], comment[8:]
    if head == _UTF16:
        # The standard leaves the byte order open. The right one is that with more ASCII: an infotext has some.
        big, little = (body.decode(f"utf-16-{order}", "replace") for order in ("be", "le"))
        text = little if _count_ascii(little) > _count_ascii(big) else big
        if b"Steps: " in body:  # some programs write UTF-8 under this name
            text = body.decode("utf-8", "replace")
    else:
        text = (body if head in (_ASCII, _JIS, b"\0" * 8) else comment).decode("utf-8", "replace")
    return text.strip("\0\ufeff") or None


def read_note(note: object) -> str | None:
    """The text of a maker note of ours, None for any other."""
    if not isinstance(note, bytes) or not note.startswith(_NOTE):
        return None
    return note.removeprefix(_NOTE).decode("utf-8", "replace") or None


def read_named(values: Mapping[int, object]) -> Iterator[tuple[str, str]]:
    """Name and text of the tags in which ComfyUI and its savers write `name:{…}`."""
    for tag, value in values.items():
        if isinstance(value, str) and (tag in TEXT_TAGS or 0x0100 <= tag < 0x0111):
            name, colon, text = value.strip("\0 ").partition(":")
            if colon and name.lower() in ("prompt", "workflow"):
                yield name.lower(), text


def _count_ascii(text: str) -> int:
    return sum(" " <= character <= "~" for character in text)
