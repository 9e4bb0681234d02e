"""What stands around the pixels of a picture file, read without its decoder and with limits. Bytes only.

Pillow takes the parts of a file as they come: a file of nothing but tiny parts keeps it busy for minutes, a profile of a
few kilobytes unfolds to a megabyte and stops it, damaged Exif and animations make it warn, which in a program of several
threads cannot be kept quiet for one of them. So the parts are counted here, and those that no pixel needs are left out.

All raise ValueError, with what is wrong, for files that are not as their format says.
"""

from __future__ import annotations

import re
import struct

MOST_PARTS = 50_000
"""Chunks of a PNG, segments of a JPEG, blocks before the pixels of a GIF. Large real pictures have a few thousand."""
MOST_SCANS = 50
"""Of a progressive JPEG, which usually has about ten. Each is a pass over the whole picture, and may cost a few bytes."""

_NO_PIXELS = "the file ends before its pixels begin"
_UNUSED = {b"acTL", b"fcTL", b"fdAT", b"iCCP"}
"""Chunks of animations, without which a PNG is its first picture, and the colour profile, which nothing here applies."""
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}

_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8])")
"""Of a JPEG's segment: what follows a 255 is no pixel data and no marker that stands alone."""
_START_OF_SCAN, _END, _FILLING = 0xDA, 0xD9, 0xFF
_EXIF, _PROFILE = b"Exif\0\0", b"ICC_PROFILE\0"

_EXTENSION, _CONTROL, _COMMENT, _PICTURE = 0x21, 0xF9, 0xFE, 0x2C


def read_png(data: bytes, texts: bool, pixels: bool = True) -> tuple[bytes, bytes | None]:
    """(the file with the chunks that pixels need, and those with text where they are wanted; its Exif block).

    Exif may stand behind the pixels, where Pillow finds it only after decoding them; without `pixels` they are left out,
    so that it finds texts there too.
    """
    unused = _UNUSED if texts else _UNUSED | _TEXTS
    unused = unused if pixels else unused | {b"IDAT"}
    kept: list[bytes | memoryview] = []
    whole = memoryview(data)
    block = None
    start, place = 0, 8
    for _ in range(MOST_PARTS):
        name = data[place + 4 : place + 8]
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if name == b"IEND" or end > len(data):
            if not start:
                return data, block
            return b"".join([*kept, whole[start:]]), block
        if name in unused or name == b"eXIf":
            if name == b"eXIf":
                block = data[place + 8 : end - 4]
            kept.append(whole[start:place])
            start = end
        place = end
    raise ValueError(f"it has more than {MOST_PARTS:,} chunks")


def read_jpeg(data: bytes) -> tuple[bytes, bytes | None]:
    """(the file without Exif and colour profile, and without what lies between its segments; the Exif block)."""
    kept = [data[:2]]
    blocks: list[bytes] = []
    scans_from, scans, place = 0, 0, 2
    for _ in range(MOST_PARTS):
        found = _MARKER.search(data, place)
        if found is None or found[1][0] == _END:
            if not scans:
                raise ValueError(_NO_PIXELS)
            # A file that ends here without an end marker is cut short, which the decoder says.
            return b"".join([*kept, memoryview(data)[scans_from:]]), b"".join(blocks) or None
        marker = found[1][0]
        if marker == _FILLING:
            place = found.start() + 1
            continue
        begin, place = found.start(), found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        if place < found.end() + 2:
            raise ValueError(f"a segment has a length of {place - found.end()}")
        if marker == _START_OF_SCAN:
            scans_from = scans_from or begin
            scans += 1
            if scans > MOST_SCANS:
                raise ValueError(f"it has more than {MOST_SCANS} scans")
        elif not scans:
            content = data[begin + 4 : place]
            if marker == 0xE1 and content.startswith(_EXIF):
                blocks.append(content.removeprefix(_EXIF))  # a long block is cut into several segments
            elif marker != 0xE2 or not content.startswith(_PROFILE):
                kept.append(data[begin:place])
    raise ValueError(f"it has more than {MOST_PARTS:,} segments")


def read_gif(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """(the file without extensions but those of its first picture, width and height that this one needs)."""
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        place = 13 + (6 << (flags & 7) if flags & 128 else 0)
        kept = [data[:place]]
        parts = 0
        while parts < MOST_PARTS:
            parts += 1
            kind, begin = data[place], place
            if kind == _PICTURE:
                left, top, across, down = struct.unpack_from("<HHHH", data, place + 1)
                size = max(width, left + across), max(height, top + down)
                return b"".join([*kept, memoryview(data)[place:]]), size
            place += 1
            if kind == _EXTENSION:
                place += 1
                while data[place] and parts < MOST_PARTS:
                    place += 1 + data[place]
                    parts += 1
                place += 1
                if data[begin + 1] in (_CONTROL, _COMMENT) and data[begin + 2]:
                    kept.append(data[begin:place])
    except (IndexError, struct.error):
        raise ValueError(_NO_PIXELS) from None
    raise ValueError(f"it has more than {MOST_PARTS:,} blocks before its pixels")


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height from the head of a WebP (RFC 9649)."""
    if len(data) < 30:
        raise ValueError(_NO_PIXELS)
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF
