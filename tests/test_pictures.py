"""Pictures that are given to a run: whatever they come as, the same pixels; and nothing of them in the program before."""

import copy
import dataclasses
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
import torch
from numpy.typing import NDArray

from avila_diffusion import exif
from avila_diffusion.errors import AvilaError, FileProblem, RequestError
from avila_diffusion.images import Image, read_image
from avila_diffusion.pictures import Picture

Pixels = NDArray[numpy.uint8]
FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "GIF"]
SOURCE = Path(__file__).resolve().parent.parent / "src"


@pytest.fixture
def pixels() -> Pixels:
    """A noisy picture, 7 wide and 5 high."""
    return numpy.random.default_rng(8).integers(0, 256, (5, 7, 3), numpy.uint8)


def encoded(picture: PIL.Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def smooth(mode: str = "RGB", width: int = 24, height: int = 10) -> PIL.Image.Image:
    """A picture without symmetry, that survives lossy formats."""
    down, across = numpy.mgrid[0:height, 0:width]
    red, green = across * 255 // (width - 1), down * 255 // (height - 1)
    values = numpy.stack([red, green, (red + green) // 2], 2).astype(numpy.uint8)
    return PIL.Image.fromarray(values).convert(mode)


# The thing itself


def test_it_is_its_bytes(pixels: Pixels) -> None:
    data = encoded(PIL.Image.fromarray(pixels))
    one, other = Picture(data, "a.png"), Picture(bytes(bytearray(data)), "b.png")
    assert one == other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    assert one != Picture(data + b"\0")
    assert one != data
    assert (one.data, one.name, Picture(data).name) == (data, "a.png", None)
    assert one.digest == one.digest == hashlib.sha256(data).hexdigest()
    assert repr(one) == f"Picture(a.png, {len(data)} bytes)"
    assert repr(Picture(b"x" * 2000)) == "Picture(without a name, 2,000 bytes)"


def test_it_cannot_be_changed_and_copies_are_itself(pixels: Pixels) -> None:
    picture = Picture.of(pixels, "image")
    for name in ("data", "name", "size", "digest", "other"):
        with pytest.raises(AttributeError):
            setattr(picture, name, None)
    first = picture.rgb()
    first[:] = 0
    assert numpy.array_equal(picture.rgb(), pixels)
    assert copy.copy(picture) is copy.deepcopy(picture) is picture
    again = pickle.loads(pickle.dumps(Picture(picture.data, "a.png")))
    assert (again, again.name) == (picture, "a.png")


def test_it_stays_whole_in_a_dataclass(pixels: Pixels) -> None:
    @dataclasses.dataclass(frozen=True)
    class Request:
        image: Picture

    picture = Picture.of(pixels, "image")
    assert dataclasses.asdict(Request(picture))["image"] is picture
    assert not dataclasses.is_dataclass(picture)
    assert hash(Request(picture)) == hash(Request(Picture(picture.data)))


@pytest.mark.parametrize(
    ("data", "name"), [("text", None), (b"", 5), (bytearray(b"a"), None), (None, None), (b"", Path("a.png"))]
)
def test_other_parts_are_refused(data: Any, name: Any) -> None:
    with pytest.raises(RequestError, match="made of bytes and a name, not of"):
        Picture(data, name)


def test_importing_it_loads_neither_numpy_nor_pillow() -> None:
    program = (
        "import sys, avila_diffusion.pictures as p\n"
        "picture = p.Picture(b'x', 'a'); picture.digest; p.Picture.to_json(picture); hash(picture)\n"
        "assert not {'numpy', 'PIL', 'torch'} & set(sys.modules), sorted(sys.modules)\n"
    )
    env = dict(os.environ, PYTHONPATH=str(SOURCE))
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


# What it may come as


def test_files_by_path_and_by_bytes(tmp_path: Path, pixels: Pixels) -> None:
    path = Image(pixels, "a cat\nSteps: 1").save_png(tmp_path / "añb.png")
    picture = Picture.of(path, "image")
    assert (picture.name, picture.data) == ("añb.png", path.read_bytes())
    assert numpy.array_equal(picture.rgb(), pixels)
    assert Picture.of(str(path), "image") == picture
    assert Picture.of(picture, "mask") is picture
    for data in (path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        assert Picture.of(data, "image") == picture
    path.unlink()  # it was read then
    assert picture.size == (7, 5)


def test_images_of_ours_lose_their_text(pixels: Pixels) -> None:
    assert Picture.of(Image(pixels, "a cat", 5), "image") == Picture.of(Image(pixels), "image")
    assert numpy.array_equal(Picture.of(Image(pixels), "image").rgb(), pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "La", "RGBa", "PA"]
)
def test_pillow_images_of_every_mode(mode: str) -> None:
    base = smooth("RGBA")
    base.putalpha(smooth("L"))
    steps = {"La": ["LA", "La"], "RGBa": ["RGBa"], "PA": ["P", "PA"]}.get(mode, [mode])
    image = base.convert("RGB") if mode in ("1", "P", "PA", "CMYK", "YCbCr", "HSV", "RGBX") else base
    for step in steps:
        image = image.convert(step)
    assert image.mode == mode
    picture = Picture.of(image, "image")
    seen = PIL.Image.new("RGBA", image.size, "white")
    plain = image.convert("LA") if mode == "La" else image
    seen.alpha_composite(plain.convert("RGBA"))
    assert numpy.array_equal(picture.rgb(), numpy.asarray(seen.convert("RGB")))


def test_pillow_images_of_numbers() -> None:
    values = numpy.array([[0, 0x1234, 0xFFFF]])
    for image in (
        PIL.Image.fromarray(values.astype(numpy.uint16)),
        PIL.Image.fromarray(values.astype(numpy.int32)),
        PIL.Image.fromarray((values / 65535).astype(numpy.float32)),
    ):
        assert numpy.abs(Picture.of(image, "depth").depth() * 65535 - values).max() < 0.01
    with pytest.raises(RequestError, match=r"^depth is an array of int32"):
        Picture.of(PIL.Image.fromarray(values.astype(numpy.int32) - 1), "depth")
    with pytest.raises(RequestError, match=r"^depth has values from 0 to 2"):
        Picture.of(PIL.Image.fromarray(numpy.array([[0, 2]], numpy.float32)), "depth")


def test_pillow_images_are_turned_upright_and_lose_what_is_beside() -> None:
    block = PIL.Image.Exif()
    block[exif.ORIENTATION] = 6
    data = encoded(smooth(), "JPEG", exif=block, quality=95)
    with PIL.Image.open(io.BytesIO(data)) as opened:
        picture = Picture.of(opened, "image")
    assert picture.size == (10, 24)
    assert numpy.array_equal(picture.rgb(), Picture(data).rgb())
    assert b"eXIf" not in picture.data
    image = smooth()
    image.info |= {"icc_profile": b"nothing", "dpi": (72, 72), "transparency": (0, 0, 0)}
    assert Picture.of(image.convert("RGB"), "image").alpha() is not None
    del image.info["transparency"]
    assert Picture.of(image, "image") == Picture.of(smooth(), "image")


def test_pillow_images_of_damaged_files_are_refused() -> None:
    data = encoded(PIL.Image.effect_noise((64, 64), 90), "JPEG")
    with pytest.raises(FileProblem, match=r"^image is damaged"), PIL.Image.open(io.BytesIO(data[:-200])) as opened:
        Picture.of(opened, "image")


VALUES = numpy.random.default_rng(2).integers(0, 256, (4, 6, 4), numpy.uint8)
GREY = VALUES[..., 0]


@pytest.mark.parametrize("kind", [numpy.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY),
        (GREY[..., None], GREY),
        (VALUES[..., :3], VALUES[..., :3]),
        (GREY > 99, (GREY > 99) * 255),
        (VALUES[..., :3] > 99, (VALUES[..., :3] > 99) * 255),
        (GREY.astype(numpy.uint16) * 257, GREY),
        (GREY.astype(numpy.uint16) * 256 + 255, GREY),
        (VALUES[..., :3].astype(numpy.uint16) * 256 + 200, VALUES[..., :3]),
        (GREY / 255, GREY),
        (VALUES[..., :3] / 255, VALUES[..., :3]),
        ((VALUES[..., :3] / 255).astype(numpy.float32) * 1.00001, VALUES[..., :3]),
        ((VALUES[..., :3] / 255).astype(numpy.float16), VALUES[..., :3]),
    ],
)
def test_arrays_and_tensors(array: NDArray[Any], expected: NDArray[Any], kind: Callable[[NDArray[Any]], Any]) -> None:
    expected = expected.astype(numpy.uint8)
    if expected.ndim == 2:
        expected = expected[..., None].repeat(3, 2)
    picture = Picture.of(kind(numpy.ascontiguousarray(array)), "image")
    assert numpy.array_equal(picture.rgb(), expected)
    assert picture.alpha() is None
    assert picture.data[:4] == b"\x89PNG"


def test_arrays_with_transparency_keep_it() -> None:
    for array in (VALUES, VALUES / 255, torch.from_numpy(VALUES)):
        picture = Picture.of(array, "image")
        assert numpy.array_equal(picture.alpha(), VALUES[..., 3])  # type: ignore[arg-type]
        laid = VALUES[..., :3] * (VALUES[..., 3:] / 255) + 255.0 - VALUES[..., 3:]
        assert numpy.abs(picture.rgb() - laid).max() <= 1


def test_arrays_in_any_order_and_tensors_of_any_kind() -> None:
    expected = Picture.of(VALUES[..., :3], "image")
    for array in (VALUES[..., :3], numpy.asfortranarray(VALUES[..., :3]), VALUES[::-1, ::-1, :3][::-1, ::-1]):
        assert Picture.of(array, "image") == expected
    assert Picture.of(GREY.astype(">u2") * 257, "image") == Picture.of(GREY.astype(numpy.uint16) * 257, "image")
    tensor = torch.tensor([[0.0, 0.5, 1.0]], requires_grad=True)
    for given in (tensor, tensor.bfloat16(), tensor.detach().double(), tensor.half()):
        assert Picture.of(given, "mask").mask().tolist() == [[0, 128, 255]]

    class Holder:
        __array_interface__ = numpy.ascontiguousarray(VALUES[..., :3]).__array_interface__

    assert Picture.of(Holder(), "image") == expected


class Broken:
    def __array__(self, dtype: object = None, copy: object = None) -> NDArray[Any]:
        raise RuntimeError("the device\nis gone")


NAN, INFINITE = numpy.full((4, 4), numpy.nan), numpy.full((4, 4, 3), numpy.inf)


@pytest.mark.parametrize("what", ["image", "mask"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is of type NoneType; give a path, the bytes of a file, an image or an array of pixels"),
        ([[0, 1]], "is of type list"),
        (5, "is of type int"),
        ({"a": 1}, "is of type dict"),
        (numpy.zeros(4, numpy.uint8), r"has the shape \(4,\); it must be \(height, width\), or with 1, 3 or 4 behind"),
        (numpy.zeros((3, 8, 8), numpy.uint8), r"has the shape \(3, 8, 8\)"),
        (numpy.zeros((1, 8, 8, 3), numpy.uint8), r"has the shape \(1, 8, 8, 3\)"),
        (numpy.zeros((8, 8, 2), numpy.uint8), r"has the shape \(8, 8, 2\)"),
        (numpy.zeros((0, 8), numpy.uint8), "is 8x0, without a pixel"),
        (
            numpy.zeros((8, 8), numpy.int64),
            "is an array of int64; it must be bool, uint8, uint16, or floats from 0 to 1",
        ),
        (numpy.zeros((8, 8), numpy.uint32), "is an array of uint32"),
        (numpy.zeros((8, 8), numpy.complex64), "is an array of complex64"),
        (numpy.array([["a"]]), "is an array of <U1"),
        (NAN, "has values that are NaN or infinite"),
        (INFINITE, "has values that are NaN or infinite"),
        (numpy.array([[0.0, 255.0]]), "has values from 0 to 255; floats must be from 0 to 1"),
        (numpy.array([[-0.5, 0.5]]), "has values from -0.5 to 0.5"),
        (torch.zeros(3, 8, 8), r"has the shape \(3, 8, 8\)"),
        (torch.zeros(8, 8, dtype=torch.int64), "is an array of int64"),
        (torch.zeros(8, 8, device="meta"), "cannot be read as an array"),
        (Broken(), r"cannot be read as an array \(the device is gone\)"),
        (numpy.broadcast_to(numpy.uint8(0), (5000, 5000)), "is 5000x5000; pictures of up to 16.8 million pixels"),
        (PIL.Image.new("1", (5000, 5000)), "is 5000x5000"),
        (PIL.Image.new("RGB", (0, 5)), "is 0x5"),
        (b"", "is not a PNG, JPEG, WebP, AVIF or GIF picture"),
        (b"hello", "is not a PNG"),
        ("", "is an empty name; give the path of a picture"),
        ("none.png", r"none\.png cannot be read \(No such file"),
        (Path("no\nsuch.png"), r"no such\.png cannot be read"),
        ("a\0.png", r"a \.png cannot be read \(embedded null"),
    ],
)
def test_anything_else_is_refused_in_one_line(what: str, value: Any, message: str) -> None:
    with pytest.raises(AvilaError, match=f"^{what} {message}") as caught:
        Picture.of(value, what)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RequestError | FileProblem)


def test_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate((64 << 20) + 1)  # no room on disk is taken
    with pytest.raises(FileProblem, match=r"^image .*a\.png has more than 64 MiB"):
        Picture.of(path, "image")
    monkeypatch.setattr("avila_diffusion.pictures.MAX_BYTES", 1 << 20)
    for make in (Picture, lambda data: Picture.of(data, "image"), lambda data: Picture.of(bytearray(data), "image")):
        with pytest.raises(RequestError, match=r"1 MiB|at most 1 are read"):
            make(bytes((1 << 20) + 1))


# What is in it


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(format_name: str, turn: int) -> None:
    if format_name == "GIF" and turn > 1:
        pytest.skip("a GIF has no Exif")
    block = PIL.Image.Exif()
    block[exif.ORIENTATION] = turn
    data = encoded(smooth(), format_name, **({} if format_name == "GIF" else {"exif": block}))
    with PIL.Image.open(io.BytesIO(data)) as opened:
        expected = numpy.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))
    picture = Picture(data)
    assert picture.size == ((24, 10) if turn < 5 else (10, 24))
    assert numpy.array_equal(picture.rgb(), expected)
    assert picture.mask().shape == picture.depth().shape == expected.shape[:2]
    assert numpy.array_equal(read_image(data).pixels, expected)


def test_exif_behind_the_pixels_of_a_png_counts() -> None:
    block = PIL.Image.Exif()
    block[exif.ORIENTATION] = 8
    data = encoded(smooth(), exif=block)
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    rest = data[:start] + data[start + length :]
    late = rest[:-12] + data[start : start + length] + rest[-12:]
    assert Picture(late).size == read_image(late).pixels.shape[1::-1] == (10, 24)
    assert numpy.array_equal(Picture(late).rgb(), Picture(data).rgb())


@pytest.mark.parametrize("format_name", FORMATS)
def test_the_size_is_read_without_decoding(format_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth(), format_name)

    def decode(self: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decode)
    picture = Picture(data)
    assert picture.size == (24, 10)
    monkeypatch.setattr("avila_diffusion.image_files.opened", decode)
    assert picture.size == (24, 10)  # made once
    with pytest.raises(FileProblem, match="the picture is damaged"):
        Picture(data).rgb()


def as_webui(image: PIL.Image.Image, hard: bool) -> Pixels:
    """A mask by the WebUI's rule, of an image whose mode is plain."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        values = numpy.asarray(image)[..., 3]
        return numpy.array([0] * 129 + [255] * 127, numpy.uint8)[values] if hard else values
    return numpy.asarray(image.convert("L"))


ALPHAS = numpy.array([[0, 1, 127, 128, 129, 254, 255]], numpy.uint8)


def with_alpha(alpha: Pixels) -> PIL.Image.Image:
    image = PIL.Image.fromarray(numpy.random.default_rng(4).integers(0, 256, (*alpha.shape, 3), numpy.uint8))
    image.putalpha(PIL.Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize(
    "image", [with_alpha(ALPHAS), with_alpha(numpy.full_like(ALPHAS, 255)), smooth(), smooth("L"), smooth("1")]
)
def test_masks_are_read_as_the_webui_does(image: PIL.Image.Image, hard: bool) -> None:
    assert numpy.array_equal(Picture(encoded(image)).mask(hard), as_webui(image, hard))


def test_a_mask_of_transparency_by_hand() -> None:
    picture = Picture(encoded(with_alpha(ALPHAS)))
    assert picture.mask().tolist() == [[0, 0, 0, 0, 255, 255, 255]]
    assert picture.mask(hard=False).tolist() == ALPHAS.tolist()
    assert numpy.array_equal(picture.alpha(), ALPHAS)  # type: ignore[arg-type]


def test_masks_of_other_kinds_of_files() -> None:
    palette = PIL.Image.fromarray(numpy.array([[0, 1, 2]], numpy.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0, 100, 100, 100])
    assert Picture(encoded(palette)).mask().tolist() == [[255, 0, 100]]
    assert Picture(encoded(palette)).alpha() is None
    one = Picture(encoded(palette, transparency=1))
    assert (one.mask().tolist(), one.rgb()[..., 0].tolist()) == ([[255, 0, 255]], [[255, 255, 100]])
    several = Picture(encoded(palette, transparency=bytes([0, 200, 100])))
    assert several.mask(hard=False).tolist() == [[0, 200, 100]]
    assert several.mask().tolist() == [[0, 255, 0]]
    gif = Picture(encoded(palette, "GIF", transparency=2))
    assert gif.mask().tolist() == [[255, 255, 0]]
    pair = PIL.Image.merge(
        "LA", [PIL.Image.new("L", (2, 1), 9), PIL.Image.fromarray(numpy.array([[200, 100]], numpy.uint8))]
    )
    assert Picture(encoded(pair)).mask().tolist() == [[255, 0]]
    grey = PIL.Image.fromarray(numpy.array([[0, 0x1234, 0xFFFF]], numpy.uint16))
    assert Picture(encoded(grey)).mask().tolist() == [[0, 0x12, 0xFF]]
    assert Picture(encoded(grey)).alpha() is None
    clear = Picture(encoded(grey, transparency=0x1234))
    assert clear.mask().tolist() == [[255, 0, 255]]
    assert clear.rgb()[..., 0].tolist() == [[0, 255, 255]]


def test_cmyk_is_read_rightly() -> None:
    inks = PIL.Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encoded(inks, "JPEG", quality=100)
    assert numpy.abs(Picture(data).rgb()[8, 8].astype(int) - [0, 255, 255]).max() <= 2
    assert abs(int(Picture(data).mask()[8, 8]) - 179) <= 2


def test_sixteen_bits_with_transparency() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    values = numpy.array([[[0x1234, 0, 0xFFFF, 0xFFFF], [0xABCD, 0x80FF, 0, 0x8000]]], ">u2")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes([0, 0, 0, 2, 0, 0, 0, 1, 16, 6, 0, 0, 0]))
    data += chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    picture = Picture(data)
    assert picture.alpha() is not None
    assert picture.mask(hard=False).tolist() == [[255, 128]]
    assert picture.rgb()[0, 0].tolist() == [0x12, 0, 0xFF]


def test_depth_keeps_what_the_file_has() -> None:
    deep = numpy.arange(65536, dtype=numpy.uint16).reshape(256, 256)
    found = Picture(encoded(PIL.Image.fromarray(deep))).depth()
    assert found.dtype == numpy.float32
    assert numpy.abs(found.astype(float) * 65535 - deep).max() < 0.01
    again = Picture.of(found, "depth")
    assert numpy.array_equal(again.depth(), found)  # floats of one channel are kept in 16 bits
    shallow = Picture(encoded(smooth())).depth()
    assert numpy.array_equal(shallow, numpy.asarray(smooth().convert("L")).astype(numpy.float32) / 255)


# As JSON


def test_it_goes_through_json(pixels: Pixels) -> None:
    picture = Picture(encoded(PIL.Image.fromarray(pixels)), "a.png")
    again = Picture.from_json(json.loads(json.dumps(picture.to_json())))
    assert (again, again.name) == (picture, "a.png")
    assert set(picture.to_json()) == {"name", "base64"}
    assert Picture.from_json({"base64": picture.to_json()["base64"]}).name is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "must be a table of base64, the bytes of an image file, and perhaps a name"),
        ("aGVsbG8=", "must be a table"),
        ([], "must be a table"),
        ({}, "must be a table"),
        ({"name": "a"}, "must be a table"),
        ({"base64": "", "path": "/etc/passwd"}, "must be a table"),
        ({"base64": 5}, "base64 must be text"),
        ({"base64": b"aGVsbG8="}, "base64 must be text"),
        ({"base64": "aGVsbG8=", "name": 5}, "base64 must be text, and name too"),
        ({"base64": "aGVsbG8"}, "base64 cannot be decoded"),
        ({"base64": "aGVs\nbG8="}, "base64 cannot be decoded"),
        ({"base64": "é"}, "base64 cannot be decoded"),
        ({"base64": "aGVsbG8="}, "is not a PNG"),
        ({"base64": "aGVsbG8=", "name": "a\nb\x1b[2J.png"}, r"a b \[2J\.png is not a PNG"),
        ({"base64": ""}, "is not a PNG"),
    ],
)
def test_other_json_is_refused(values: Any, message: str) -> None:
    with pytest.raises(AvilaError, match=f"^mask:? {message}") as caught:
        Picture.from_json(values, "mask")
    assert str(caught.value).isprintable()


def test_json_of_more_than_may_be_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avila_diffusion.pictures.MAX_BYTES", 3 << 20)
    monkeypatch.setattr("base64.b64decode", None)
    with pytest.raises(RequestError, match=r"^image has more than 3 MiB"):
        Picture.from_json({"base64": "A" * (5 << 20)}, "image")


# Exif, and warnings


@pytest.mark.parametrize("order", ["<", ">"])
def test_blocks_are_read_as_pillow_reads_them(order: str) -> None:
    block = PIL.Image.Exif()
    block.endian = order
    block[exif.ORIENTATION], block[0x010F], block[0x0110] = 3, "prompt:{}", "workflow:{1}"
    block.get_ifd(exif.IFD)[exif.USER_COMMENT] = b"ASCII\0\0\0a cat"
    block.get_ifd(exif.IFD)[exif.MAKER_NOTE] = b"x"
    data = block.tobytes()
    assert data[6:8] == (b"II" if order == "<" else b"MM")
    main, inner = exif.read_block(data)
    assert {tag: main[tag] for tag in (exif.ORIENTATION, 0x010F, 0x0110)} == {
        exif.ORIENTATION: 3,
        0x010F: "prompt:{}",
        0x0110: "workflow:{1}",
    }
    assert inner == {exif.USER_COMMENT: b"ASCII\0\0\0a cat", exif.MAKER_NOTE: b"x"}
    assert exif.read_block(data.removeprefix(b"Exif\0\0")) == exif.read_block(b"Exif\0\0" + data) == (main, inner)
    for end in range(len(data)):
        exif.read_block(data[:end])
        exif.read_block(data[:end] + b"\xff" + data[end + 1 :])
    assert exif.read_block(b"") == exif.read_block(b"XX" + data[8:]) == ({}, {})


def damaged_exif(format_name: str) -> bytes:
    """A picture with an Exif block that Pillow warns about."""
    block = PIL.Image.Exif()
    block[0x010F] = "a" * 100
    data = block.tobytes()
    return encoded(smooth(), format_name, exif=data[:-40])


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_passed_over_without_a_word(format_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = damaged_exif(format_name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with PIL.Image.open(io.BytesIO(data)) as opened:
            opened.getexif()
    assert caught  # or there is nothing to see here
    monkeypatch.setattr(warnings, "warn", None)
    monkeypatch.setattr(warnings, "catch_warnings", None)
    assert read_image(data).pixels.shape == (10, 24, 3)
    assert Picture(data).size == (24, 10)
    assert Picture(data).mask().shape == (10, 24)


def test_threads_leave_each_others_warnings_alone() -> None:
    """Every thread's reading goes on while another counts its own warnings; none is swallowed."""
    data, stop, wrong = damaged_exif("JPEG"), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                read_image(data)
            except Exception as error:
                wrong.append(error)

    filters = list(warnings.filters)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with pytest.raises(UserWarning, match="mine"):
                warnings.warn("mine", UserWarning, stacklevel=1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert list(warnings.filters) == filters
