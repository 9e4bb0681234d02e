"""Pictures made to do harm: refused or read, soon and in little memory."""

import contextlib
import functools
import io
import json
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest

from avila_diffusion import image_heads
from avila_diffusion.errors import FileProblem
from avila_diffusion.images import read_image
from avila_diffusion.pictures import Picture

SOURCE = Path(__file__).resolve().parent.parent / "src"
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(picture: PIL.Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 24) -> PIL.Image.Image:
    return PIL.Image.fromarray(numpy.random.default_rng(3).integers(0, 256, (height, width, 3), numpy.uint8))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@functools.cache
def zeros(count: int) -> bytes:
    """So many zeros, packed."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def png(
    width: int = 8, height: int = 8, *, depth: int = 8, kind: int = 0, before: bytes = b"", body: bytes = b""
) -> bytes:
    """A grey PNG, with chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", body or zeros(height * (1 + (width * depth + 7) // 8)))
    return PNG + head + before + pixels + chunk(b"IEND", b"")


def png_with(data: bytes, *extra: bytes, late: bool = False) -> bytes:
    """With chunks behind the head, or before the end."""
    place = len(data) - 12 if late else 33
    return data[:place] + b"".join(extra) + data[place:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*extra: bytes, data: bytes | None = None) -> bytes:
    """Segments behind the start of a JPEG."""
    data = data or encoded(noise(), "JPEG")
    return data[:2] + b"".join(extra) + data[2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(count: int) -> bytes:
    """A large progressive JPEG, its last scan again and again."""
    data = encoded(PIL.Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], before: bytes = b"") -> bytes:
    """A GIF whose picture has no pixels to speak of."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    return head + before + b"," + struct.pack("<4HB", *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of a few bytes with a large canvas."""
    frames = [noise(16, 16), noise(16, 16).rotate(90)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def overlapping_exif(entries: int, length: int) -> bytes:
    """A block whose every entry names the same megabytes."""
    rows = b"".join(struct.pack(">HHII", tag, 7, length, 0) for tag in range(entries))
    return b"MM\0*" + struct.pack(">IH", 8, entries) + rows + bytes(length)


MEGABYTE = 1 << 20
BOMBS: dict[str, Callable[[], bytes]] = {
    "png 1 bit": lambda: png(30000, 30000, depth=1),
    "png 8 bits": lambda: png(13000, 13000, depth=8),
    "png 2^31 wide": lambda: png(2**31 - 1, 2**31 - 1, body=zlib.compress(b"")),
    "png zero wide": lambda: png(0, 8, body=zlib.compress(b"")),
    "png of many chunks": lambda: png(before=chunk(b"teSt", b"") * 200_000),
    "png of many chunks behind": lambda: png_with(png(), *[chunk(b"teSt", b"") * 200_000], late=True),
    "jpeg size": lambda: jpeg_of_size(60000, 60000),
    "jpeg scans": lambda: jpeg_of_scans(2000),
    "jpeg of many segments": lambda: jpeg_with(segment(0xFE, b"") * 1_000_000),
    "jpeg without pixels": lambda: b"\xff\xd8\xff" + b"\xff\xe0\0\x02" * 10_000,
    "jpeg of filling before its pixels": lambda: jpeg_with(b"\xff" * (16 * MEGABYTE)),
    "jpeg of filling": lambda: b"\xff\xd8" + b"\xff" * (16 * MEGABYTE),
    "gif zero high": lambda: gif((8, 0), (0, 0, 8, 0)),
    "gif screen": lambda: gif((65535, 65535), (0, 0, 1, 1)),
    "gif frame": lambda: gif((8, 8), (65000, 65000, 500, 500)),
    "gif comments": lambda: gif((8, 8), (0, 0, 8, 8), b"!\xfe" + b"\x01a" * 4_000_000 + b"\0"),
    "gif extensions": lambda: gif((8, 8), (0, 0, 8, 8), b"!\xf9\0" * 1_000_000),
    "gif junk": lambda: gif((8, 8), (0, 0, 8, 8), b"x" * (16 * MEGABYTE)),
    "webp canvas": lambda: webp_canvas(16384, 16384),
    "webp canvas of 2^24": lambda: webp_canvas(1 << 24, 1 << 24),
}
"""What has to be refused."""

NUISANCES: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "png profile": (lambda: png(before=chunk(b"iCCP", b"a\0\0" + zeros(64 * MEGABYTE))), (8, 8)),
    "png text": (lambda: png(before=chunk(b"zTXt", b"a\0\0" + zeros(64 * MEGABYTE))), (8, 8)),
    "png unicode text": (lambda: png(before=chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(64 * MEGABYTE))), (8, 8)),
    "png texts": (lambda: png(before=chunk(b"zTXt", b"a\0\0" + zeros(MEGABYTE)) * 500), (8, 8)),
    "png long text": (lambda: png_with(png(), chunk(b"tEXt", b"a\0" + b"b" * (32 * MEGABYTE)), late=True), (8, 8)),
    "png pixels without end": (lambda: png(body=zeros(64 * MEGABYTE)), (8, 8)),
    "png exif": (lambda: png(before=chunk(b"eXIf", overlapping_exif(60000, 8 * MEGABYTE))), (8, 8)),
    "png animation of none": (lambda: png(before=chunk(b"acTL", bytes(8))), (8, 8)),
    "png two animations": (lambda: png(before=chunk(b"acTL", b"\0\0\0\1\0\0\0\0") * 2), (8, 8)),
    "png frames out of order": (lambda: png(before=chunk(b"fcTL", b"\xff" * 26)), (8, 8)),
    "png wide": (lambda: png(10000, 1), (10000, 1)),
    "png high": (lambda: png(1, 10000), (1, 10000)),
    "png of one": (lambda: png(1, 1), (1, 1)),
    "jpeg filling": (lambda: jpeg_with(b"\xff" * 40_000), (40, 24)),
    "jpeg junk": (lambda: jpeg_with(segment(0xFE, b""), b"x" * (16 * MEGABYTE)), (40, 24)),
    "jpeg exif": (lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + overlapping_exif(2000, 40000))), (40, 24)),
    "jpeg profile": (lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1")), (40, 24)),
    "jpeg of one": (lambda: encoded(noise(1, 1), "JPEG"), (1, 1)),
    "jpeg wide": (lambda: encoded(noise(10000, 1), "JPEG"), (10000, 1)),
    "webp high": (lambda: encoded(noise(1, 10000), "WEBP"), (1, 10000)),
    "gif of one": (lambda: encoded(noise(1, 1), "GIF"), (1, 1)),
    "avif of one": (lambda: encoded(noise(1, 1), "AVIF"), (1, 1)),
}
"""What is read all the same, and how large it is."""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    data = BOMBS[name]()
    for read in (lambda: Picture.of(data, "image"), lambda: Picture(data).rgb(), lambda: read_image(data)):
        began = time.process_time()
        with pytest.raises(FileProblem) as caught:
            read()
        assert time.process_time() - began < 2
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", NUISANCES)
def test_nuisances_do_not_stop_a_picture(name: str) -> None:
    make, size = NUISANCES[name]
    picture = Picture(make())
    began = time.process_time()
    assert picture.size == size
    assert picture.rgb().shape == (size[1], size[0], 3)
    assert picture.mask().shape == picture.depth().shape == (size[1], size[0])
    assert time.process_time() - began < 2


def test_what_is_said_of_them() -> None:
    for name, message in (
        ("png 1 bit", "is 30000x30000; pictures of up to 16.8 million pixels are read"),
        ("gif zero high", "is 8x0, without a pixel; give another picture"),
        ("png of many chunks", "is damaged and cannot be decoded (it has more than 50,000 chunks)"),
        ("jpeg scans", "(it has more than 50 scans)"),
        ("jpeg of many segments", "(it has more than 50,000 segments)"),
        ("jpeg of filling", "(it has more than 50,000 segments)"),
        ("jpeg without pixels", "(the file ends before its pixels begin)"),
        ("gif comments", "(it has more than 50,000 blocks before its pixels)"),
        ("gif frame", "is 65500x65500; pictures of up to"),
    ):
        with pytest.raises(FileProblem) as caught:
            read_image(BOMBS[name]())
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", [b"VP8X", b"VP8L", b"VP8 "])
def test_no_decoder_is_made_for_a_canvas_too_large(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[bytes, dict[str, Any]] = {
        b"VP8X": {"save_all": True, "append_images": [noise().rotate(180)]},
        b"VP8L": {"lossless": True},
    }
    data = encoded(noise(), "WEBP", **options.get(kind, {}))
    assert data[12:16] == kind
    assert Picture(data).size == (40, 24)
    monkeypatch.setattr("avila_diffusion.image_files.MAX_READ_PIXELS", 40 * 24 - 1)
    monkeypatch.setattr("avila_diffusion.image_files.WebPImageFile._open", None)
    with pytest.raises(FileProblem, match="is 40x24; pictures of up to"):
        Picture(data).rgb()


def test_text_that_is_wanted_is_limited() -> None:
    with pytest.raises(FileProblem, match="Decompressed data too large"):
        read_image(NUISANCES["png text"][0]())
    many = png(before=chunk(b"zTXt", b"a\0\0" + zeros(MEGABYTE)) * 70)
    with pytest.raises(FileProblem, match="Too much memory used in text"):
        read_image(many)
    assert read_image(NUISANCES["png profile"][0]()).width == 8


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others count a parent's memory too, or none")
def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    makers = dict(BOMBS) | {name: make for name, (make, _) in NUISANCES.items()}
    sizes = {}
    for name, make in (makers | {"small": png, "control": lambda: png(4096, 4096)}).items():
        sizes[name] = (tmp_path / name).write_bytes(make())
    env = dict(os.environ, PYTHONPATH=str(SOURCE), OMP_NUM_THREADS="1")
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["name"] for one in told] == ["small", *sorted(makers), "control"]
    first, *hostile, control = told
    largest = max(sizes[name] for name in makers)
    for one in hostile:
        assert one["seconds"] < 2, one
        # The file itself, and where something had to be left out a copy of it.
        assert one["held"] - first["held"] < 2 * largest + (16 << 20), one
    assert control["held"] - hostile[-1]["held"] > 32 << 20, "memory is not measured here"


# What is cut short


def list_wholes() -> Iterator[tuple[str, bytes]]:
    """Whole files by what is special about them."""
    yield "png", encoded(noise())
    yield "png late text", png_with(encoded(noise()), chunk(b"tEXt", b"parameters\0a\nSteps: 1"), late=True)
    yield "jpeg", encoded(noise(), "JPEG")
    yield "jpeg progressive", encoded(noise(), "JPEG", progressive=True)
    yield "webp", encoded(noise(), "WEBP")
    yield "webp lossless", encoded(noise(), "WEBP", lossless=True)
    yield "avif", encoded(noise(), "AVIF")
    yield "gif", encoded(noise(), "GIF")


WHOLES = dict(list_wholes())


@pytest.mark.parametrize(("name", "whole"), WHOLES.items(), ids=WHOLES)
def test_files_cut_short(name: str, whole: bytes) -> None:
    places = {*range(40), *range(len(whole) - 40, len(whole)), *range(0, len(whole), max(len(whole) // 60, 1))}
    for place in sorted(places):
        try:
            pixels = Picture(whole[:place]).rgb()
        except FileProblem as problem:
            assert str(problem).isprintable()
        else:  # only what stands behind the pixels is missing
            assert place > len(whole) - 60
            assert numpy.array_equal(pixels, Picture(whole).rgb())
    assert Picture(whole + bytes(1000)).size == (40, 24)


@pytest.mark.parametrize(("name", "whole"), WHOLES.items(), ids=WHOLES)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_with_wrong_bytes(name: str, whole: bytes) -> None:
    draw = random.Random(5)
    for _ in range(150):
        copy = bytearray(whole)
        for _ in range(draw.choice((1, 3))):
            copy[draw.randrange(draw.choice((40, len(copy))))] = draw.randrange(256)
        try:
            picture = Picture.of(bytes(copy), "image")
            assert picture.rgb().shape[1::-1] == picture.size
        except FileProblem as problem:
            assert str(problem).startswith("image ")


# Animations


def frames() -> list[PIL.Image.Image]:
    return [PIL.Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "GIF", "AVIF"])
def test_of_an_animation_the_first_picture(format_name: str) -> None:
    first, *others = frames()
    data = encoded(first, format_name, save_all=True, append_images=others)
    picture = Picture(data)
    assert picture.size == (16, 12)
    assert numpy.abs(picture.rgb().astype(int) - [255, 0, 0]).max() <= 4
    assert numpy.array_equal(read_image(data).pixels, picture.rgb())


def test_an_animation_of_many_pictures_costs_one() -> None:
    pictures = [PIL.Image.new("L", (256, 256), value) for value in range(100)]
    data = encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:])
    began = time.process_time()
    assert Picture(data).rgb().shape == (256, 256, 3)
    assert time.process_time() - began < 1


# What is no file


def test_folders_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(FileProblem, match=r"^image .*empty\.png is not a PNG"):
        Picture.of(tmp_path / "empty.png", "image")
    with pytest.raises(FileProblem, match=r"^mask .* cannot be read"):
        Picture.of(tmp_path, "mask")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    getattr(os, "mkfifo")(pipe)  # noqa: B009 (the type checker of Windows knows no os.mkfifo)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        for read in (read_image, lambda path: Picture.of(path, "image")):
            said: list[str] = []

            def run(read: Callable[[Any], object] = read, path: Path = path, said: list[str] = said) -> None:
                try:
                    read(path)
                except FileProblem as problem:
                    said.append(str(problem))

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(5)
            assert said, f"{path} was waited for"
            assert "is a pipe or a device, not a file" in said[0]


def test_a_file_behind_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    try:
        (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    except OSError:
        pytest.skip("links are not allowed here")
    assert Picture.of(tmp_path / "b.png", "image").size == (40, 24)


def test_no_file_stays_open(tmp_path: Path) -> None:
    """Else Windows would not let it be deleted."""
    path = tmp_path / "a.png"
    for data in (encoded(noise()), b"", b"hello"):
        path.write_bytes(data)
        with contextlib.suppress(FileProblem):
            Picture.of(path, "image").rgb()
        path.unlink()


# The heads by themselves


def test_heads_leave_ordinary_files_as_they_are() -> None:
    data = encoded(noise())
    assert image_heads.read_png(data, True) == image_heads.read_png(data, False) == (data, None)
    assert image_heads.read_png(data, True)[0] is data
    for options in ({}, {"progressive": True}, {"comment": b"hello"}):
        data = encoded(noise(), "JPEG", **options)
        assert image_heads.read_jpeg(data) == (data, None)
    data = encoded(noise(), "GIF", comment=b"a" * 600)
    assert image_heads.read_gif(data) == (data, (40, 24))


def test_long_exif_in_several_segments() -> None:
    block = overlapping_exif(3, 100_000)
    parts = [segment(0xE1, b"Exif\0\0" + block[place : place + 60_000]) for place in range(0, len(block), 60_000)]
    data, found = image_heads.read_jpeg(jpeg_with(*parts))
    assert found == block
    assert data == encoded(noise(), "JPEG")


def test_thumbnails_and_later_pictures_are_no_scans() -> None:
    whole = encoded(noise(), "JPEG")
    thumbnails = segment(0xE3, b"\xff\xda" * 5000)
    assert Picture(jpeg_with(thumbnails)).size == (40, 24)
    assert Picture(whole + b"\xff\xda\0\x02" * 5000).rgb().shape == (24, 40, 3)  # a phone's film behind its picture


def main(folder: Path) -> None:
    """A JSON line per file of the folder: name, seconds, what was said, and the most memory that was ever held, in bytes."""
    for data in (encoded(noise()), encoded(noise(), "AVIF")):  # whatever a first picture loads
        Picture(data).rgb()
    for path in (folder / "small", *sorted(folder.glob("* *")), folder / "control"):
        data = path.read_bytes()
        began = time.process_time()
        try:
            said = str(Picture(data).rgb().shape)
        except FileProblem as problem:
            said = str(problem)
        seconds = round(time.process_time() - began, 4)
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        held = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
        sys.stdout.write(json.dumps({"name": path.name, "seconds": seconds, "held": held, "said": said}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
