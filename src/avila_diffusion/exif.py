"""The Exif block of a picture, in which JPEG, WebP and AVIF carry how it was made: made and read. No Pillow, no torch.

The infotext is the user comment, in UTF-16, where AUTOMATIC1111 writes and reads it. What only we read is the maker note,
which the standard leaves to whoever made the picture and every other reader passes over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

IFD = 0x8769
USER_COMMENT, MAKER_NOTE = 0x9286, 0x927C
TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131)
"""Description, make, model and software: ComfyUI writes `prompt:{…}` and `workflow:{…}` to make, model and their like."""
MAX_JPEG = 65533
"""Bytes in one JPEG segment."""

_UTF16, _ASCII, _JIS = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0"
_NOTE = b"avila\0"
_UNDEFINED = 7


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
    header = b"Exif\0\0MM\0*" + struct.pack(">I", 8)
    directory = struct.pack(">HHHIII", 1, IFD, 4, 1, 26, 0)
    place = 26 + 2 + 12 * len(values) + 4
    entries: list[bytes] = []
    content: list[bytes] = []
    for tag, value in values.items():  # in rising order, as the standard wants them
        entries.append(struct.pack(">HHII", tag, _UNDEFINED, len(value), place))
        content.append(value + b"\0" * (len(value) % 2 if len(content) + 1 < len(values) else 0))
        place += len(content[-1])
    return b"".join([header, directory, struct.pack(">H", len(values)), *entries, bytes(4), *content])


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
