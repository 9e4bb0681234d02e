"""Pictures in and out: nothing lost, nothing half-written, nothing decoded that should not be."""

import errno
import io
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from avila_diffusion.errors import FileProblem, OutputProblem, RequestError
from avila_diffusion.images import Image, check_model_size, drawing_size, next_free_path, read_image, resize

Pixels = NDArray[numpy.uint8]
TEXTS = ["a cat\nSteps: 1", "ação, 日本 🌅\nNegative prompt: ü", "\u0100" * 5000, "nul\0in it", "\x85\xa0 latin-1 é"]
METADATA = Path(__file__).resolve().parents[2] / "shared" / "material" / "metadata"


@pytest.fixture
def pixels() -> Pixels:
    """A noisy picture, 40 wide and 24 high."""
    return numpy.random.default_rng(3).integers(0, 256, (24, 40, 3), numpy.uint8)


def left_over(folder: Path) -> list[str]:
    """Temporary files that should be gone."""
    return [path.name for path in folder.rglob("*") if "partial" in path.name]


# The picture itself


@pytest.mark.parametrize(("name", "longest"), [("JPEG", 65_500), ("WEBP", 16_383), ("AVIF", 65_536)])
def test_a_side_that_a_format_does_not_hold_is_told(name: str, longest: int) -> None:
    """The longest side is made; one pixel more is refused before the encoder is asked."""
    if name != "AVIF":  # which takes a second for it
        assert Image(numpy.zeros((1, longest, 3), numpy.uint8)).encoded(name)
    for height, width in ((2, longest + 1), (longest + 1, 2)):
        with pytest.raises(OutputProblem, match=rf"at most {longest:,} pixels a side, .* {width}x{height}; save it"):
            Image(numpy.zeros((height, width, 3), numpy.uint8)).encoded(name)


@pytest.mark.parametrize("error", [OSError("broken data\nstream"), ValueError("encoding error 5"), RuntimeError("no")])
def test_what_an_encoder_raises_is_one_line(pixels: Pixels, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PIL.Image.Image, "save", save)
    told = r"^the picture of 40x24 does not become an AVIF \([^\n]*\); take another format$"
    with pytest.raises(OutputProblem, match=told):
        Image(pixels).encoded("AVIF")


def test_a_picture_cannot_be_changed_from_outside(pixels: Pixels) -> None:
    image = Image(pixels, seed=5)
    expected = pixels.copy()
    pixels[:] = 0
    image.to_numpy()[:] = 1
    image.to_pil().putpixel((0, 0), (1, 2, 3))
    assert numpy.array_equal(image.pixels, expected)
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1
    assert (image.width, image.height) == (40, 24)
    assert repr(image) == "Image(seed=5)"


def test_it_goes_to_numpy_and_pillow(pixels: Pixels) -> None:
    image = Image(pixels[:, ::-1], "text")
    assert numpy.array_equal(image.to_numpy(), pixels[:, ::-1])
    assert image.to_numpy().flags.writeable
    picture = image.to_pil()
    assert (picture.mode, picture.size, picture.info["parameters"]) == ("RGB", (40, 24), "text")
    assert numpy.array_equal(numpy.asarray(picture), pixels[:, ::-1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (numpy.zeros((8, 8, 3)), "must be a numpy array of uint8, not float64"),
        ([[[0, 0, 0]]], "must be a numpy array of uint8, not <class 'list'>"),
        (numpy.zeros((8, 8), numpy.uint8), r"must have the shape \(height, width, 3\), not \(8, 8\)"),
        (numpy.zeros((8, 8, 4), numpy.uint8), r"not \(8, 8, 4\)"),
        (numpy.zeros((0, 8, 3), numpy.uint8), r"not \(0, 8, 3\)"),
    ],
)
def test_other_arrays_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Image(wrong)


# Writing and reading back


@pytest.mark.parametrize("text", TEXTS)
def test_a_png_comes_back_with_its_text(tmp_path: Path, pixels: Pixels, text: str) -> None:
    path = Image(pixels, text, 7).save_png(tmp_path / "a.png")
    again = read_image(path)
    assert numpy.array_equal(again.pixels, pixels)
    assert again.infotext == text
    assert numpy.array_equal(read_image(path.read_bytes()).pixels, pixels)


@pytest.mark.parametrize(("text", "chunk"), [("plain é", b"tEXt"), ("日本", b"iTXt")])
def test_the_text_is_in_the_chunk_that_automatic1111_uses(
    tmp_path: Path, pixels: Pixels, text: str, chunk: bytes
) -> None:
    path = Image(pixels, text).save_png(tmp_path / "a.png")
    data = path.read_bytes()
    assert chunk + b"parameters\0" in data
    assert data.index(b"parameters") < data.index(b"IDAT")
    with PIL.Image.open(path) as picture:
        assert picture.info["parameters"] == text


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".avif", ".JPG", ".WebP"])
@pytest.mark.parametrize("text", [text for text in TEXTS if "\0" not in text])
def test_jpeg_and_webp_come_back_with_their_text(tmp_path: Path, suffix: str, text: str) -> None:
    smooth = numpy.add.outer(numpy.arange(64), numpy.arange(48))[..., None].repeat(3, 2).astype(numpy.uint8)
    path = Image(smooth, text).save(tmp_path / f"a{suffix}", quality=95)
    again = read_image(path)
    assert again.infotext == text
    assert numpy.abs(again.pixels.astype(int) - smooth).mean() < 2
    assert path.suffix == suffix


def test_the_exif_block_is_typed_as_the_standard_says(tmp_path: Path, black: Pixels) -> None:
    # 0x9286 of type 7: Pillow's own writing would say 1, and AUTOMATIC1111 could not read it.
    data = Image(black, "é").save(tmp_path / "a.jpg").read_bytes()
    exif = data[data.index(b"Exif\0\0") :]
    assert exif[6:14] == b"MM\0*\0\0\0\x08"
    assert struct.unpack(">HHHIII", exif[14:32]) == (1, 0x8769, 4, 1, 26, 0)
    assert struct.unpack(">HHHIII", exif[32:50]) == (1, 0x9286, 7, 10, 44, 0)
    assert exif[50:60] == b"UNICODE\0\0\xe9"


def test_a_picture_without_text_has_none_anywhere(tmp_path: Path, black: Pixels) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.avif"):
        path = Image(black).save(tmp_path / name)
        assert read_image(path).infotext is None
        assert b"Exif" not in path.read_bytes()
        assert b"parameters" not in path.read_bytes()


def test_lone_surrogates_in_the_text_do_not_stop_the_picture(tmp_path: Path, black: Pixels) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.avif"):
        assert read_image(Image(black, "a\ud800b").save(tmp_path / name)).infotext == "a\ufffdb"


def test_text_too_long_for_a_jpeg_is_said(tmp_path: Path, black: Pixels) -> None:
    fits = "x" * ((65533 - 50 - 8) // 2)
    assert read_image(Image(black, fits).save(tmp_path / "a.jpg")).infotext == fits
    with pytest.raises(OutputProblem, match="metadata of 32,738 characters does not fit a JPEG; save it"):
        Image(black, fits + "x").save(tmp_path / "b.jpg")
    assert read_image(Image(black, fits + "x").save(tmp_path / "b.webp")).infotext == fits + "x"
    assert not (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.avif"])
@pytest.mark.parametrize("text", [None, "a cat\nSteps: 1", "日本"])
def test_the_record_goes_beside_the_infotext(tmp_path: Path, black: Pixels, name: str, text: str | None) -> None:
    path = Image(black, text, record='{"a": "é🌅"}').save(tmp_path / name)
    again = read_image(path)
    assert (again.infotext, again.record) == (text, '{"a": "é🌅"}')
    assert again.texts["avila"] == '{"a": "é🌅"}'
    assert ("parameters" in again.texts) == (text is not None)
    assert Image(black, text, record="r").to_pil().info["avila"] == "r"


def test_a_pillow_without_avif_says_so(tmp_path: Path, black: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(OutputProblem, match=r"built without AVIF; name the picture \.png"):
        Image(black).save(tmp_path / "a.avif")
    assert list(tmp_path.iterdir()) == []


def test_other_makers_notes_are_left_alone(black: Pixels) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = b"Nikon\0\1\2"
    buffer = io.BytesIO()
    PIL.Image.fromarray(black).save(buffer, "JPEG", exif=exif)
    assert read_image(buffer.getvalue()).record is None


def test_the_comment_of_a_gif_is_its_infotext(black: Pixels) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(black).save(buffer, "GIF", comment="a cat é\nSteps: 1".encode())
    again = read_image(buffer.getvalue())
    assert again.infotext == "a cat é\nSteps: 1"
    assert again.pixels.shape == black.shape
    with pytest.raises(FileProblem):
        read_image(buffer.getvalue()[:12])


def test_text_behind_the_pixels_is_read() -> None:
    image = read_image(Path(__file__).parent / "metadata" / "bad_text_after_idat.png")
    assert image.infotext is not None
    assert image.infotext.startswith("photo of a duck\nNegative prompt: monochrome\nSteps: 15")


def test_quality_is_passed_on(tmp_path: Path, pixels: Pixels) -> None:
    sizes = [Image(pixels).save(tmp_path / "a.jpg", quality=quality).stat().st_size for quality in (10, 90)]
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(
    ("name", "text"), [("a1111.png", "Steps: "), ("a1111.jpg", "Steps: "), ("sdcpp.png", "Steps: ")]
)
def test_pictures_of_other_programs_are_read(name: str, text: str) -> None:
    if not (METADATA / name).is_file():
        pytest.skip(f"{METADATA / name} is not there")
    infotext = read_image(METADATA / name).infotext
    assert infotext is not None
    assert text in infotext


@pytest.mark.parametrize("order", ["be", "le"])
@pytest.mark.parametrize("text", ["Steps: 20, Sampler: é", "日本, cat"])
def test_user_comments_are_read_in_either_byte_order(black: Pixels, order: str, text: str) -> None:
    comment = b"UNICODE\0" + text.encode(f"utf-16-{order}")
    assert read_image(with_comment(black, comment)).infotext == text


@pytest.mark.parametrize("head", [b"ASCII\0\0\0", b"\0" * 8, b""])
def test_user_comments_in_bytes_are_read(black: Pixels, head: bytes) -> None:
    assert read_image(with_comment(black, head + b"Steps: 20, Seed: 1")).infotext == "Steps: 20, Seed: 1"
    assert read_image(with_comment(black, head)).infotext is None


@pytest.mark.parametrize("head", [b"UNICODE\0", b"JIS\0\0\0\0\0"])
def test_user_comments_under_a_wrong_name_are_read(black: Pixels, head: bytes) -> None:
    text = "日本\nSteps: 20, Seed: 1, Size: 8x8"
    assert read_image(with_comment(black, head + text.encode())).infotext == text


@pytest.mark.parametrize("order", ["be", "le"])
def test_a_mark_of_byte_order_is_no_part_of_the_prompt(black: Pixels, order: str) -> None:
    comment = b"UNICODE\0" + "\ufeffa cat".encode(f"utf-16-{order}")
    assert read_image(with_comment(black, comment)).infotext == "a cat"


def test_damaged_exif_harms_no_pixels(black: Pixels) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat".encode("utf-16-be")
    whole = exif.tobytes()
    for place in range(6, len(whole), 3):
        buffer = io.BytesIO()
        PIL.Image.fromarray(black).save(buffer, "JPEG", exif=whole[:place] + b"\xff" + whole[place + 1 :])
        assert read_image(buffer.getvalue()).pixels.shape == black.shape


@pytest.mark.parametrize(
    ("comment", "infotext"), [(b"a\nSteps: 2, Seed: 1", "a\nSteps: 2, Seed: 1"), (b"gd-jpeg", None)]
)
def test_the_comment_of_a_jpeg_may_be_an_infotext(black: Pixels, comment: bytes, infotext: str | None) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(black).save(buffer, "JPEG", comment=comment)
    assert read_image(buffer.getvalue()).infotext == infotext


def with_comment(pixels: Pixels, comment: bytes) -> bytes:
    """A JPEG with a user comment, as Pillow writes it."""
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


# Names and places


def test_folders_are_made_and_a_missing_suffix_added(tmp_path: Path, black: Pixels) -> None:
    image = Image(black)
    assert image.save_png(tmp_path / "new" / "er" / "a") == tmp_path / "new" / "er" / "a.png"
    assert image.save_png(str(tmp_path / "v1.5")) == tmp_path / "v1.5.png"
    assert image.save_png(tmp_path / "A.PNG") == tmp_path / "A.PNG"
    assert image.save(tmp_path / "b") == tmp_path / "b.png"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["A.PNG", "a.png", "b.png", "v1.5.png"]
    assert all(read_image(path).width == 24 for path in tmp_path.rglob("*.*"))


def test_unfit_names_are_said_in_one_line(tmp_path: Path, black: Pixels) -> None:
    image = Image(black)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, r"is a folder; give a file name such as"),
        (tmp_path / "folder.png", r"folder\.png is a folder; give a file name such as .*picture\.png"),
        (tmp_path / "file" / "a.png", r"part of its folder is a file|not written"),
        (tmp_path / "a.jpg", r"a\.jpg is named as a JPEG; use save\(\)"),
        (tmp_path / "a\0.png", r"was not written \(embedded null"),
        (tmp_path / ("a" * 300 + ".png"), r"was not written"),
        ("", r"is a folder"),
    ):
        with pytest.raises(OutputProblem, match=message) as caught:
            image.save_png(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputProblem, match="is a folder; give a file name"):
        image.save(tmp_path)
    assert not tmp_path.with_name(f"{tmp_path.name}.png").exists()
    with pytest.raises(
        OutputProblem, match=r"ends in '\.bmp'; a picture can be \.png, \.jpg, \.jpeg, \.webp or \.avif"
    ):
        image.save(tmp_path / "a.bmp")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"a\.png was not written: the disk is full \(No space left on device\); free some space"),
        (errno.EACCES, r"a\.png was not written \(Permission denied\); choose another folder or name"),
        (errno.EROFS, r"a\.png was not written \(Read-only file system\)"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_what_was_there(
    tmp_path: Path, pixels: Pixels, black: Pixels, monkeypatch: pytest.MonkeyPatch, number: int, message: str, call: str
) -> None:
    path = Image(pixels, "first").save_png(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync", fail) if call == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OutputProblem, match=message):
        Image(black, "second").save_png(path)
    with pytest.raises(OutputProblem):
        Image(black, "second").save(tmp_path / "b.png", overwrite=False)
    monkeypatch.undo()
    assert read_image(path).infotext == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_said(tmp_path: Path, black: Pixels) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputProblem, match="Permission denied"):
        Image(black).save_png(tmp_path / "a.png")


def test_the_file_has_the_permissions_of_any_other(tmp_path: Path, black: Pixels) -> None:
    (tmp_path / "other").touch()
    path = Image(black).save_png(tmp_path / "a.png")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_killed_writer_leaves_a_whole_picture(tmp_path: Path) -> None:
    code = (
        "import sys, numpy; from avila_diffusion.images import Image\n"
        "images = [Image(numpy.full((256, 256, 3), value, numpy.uint8), str(value)) for value in range(256)]\n"
        "images[0].save_png(sys.argv[1]); print(flush=True)\n"
        "while True:\n"
        "    for image in images: image.save_png(sys.argv[1])"
    )
    path = tmp_path / "a.png"
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.017 * attempt)
        process.kill()
        process.communicate()
        image = read_image(path)
        assert set(image.pixels.ravel()) == {int(image.infotext or "-1")}


def test_free_names_are_counted_up(tmp_path: Path, black: Pixels) -> None:
    names = [next_free_path(tmp_path / "out", "cat").name for _ in range(3)]
    assert names == ["cat.png", "cat-1.png", "cat-2.png"]
    assert next_free_path(str(tmp_path / "out"), "cat", ".jpg").name == "cat.jpg"
    assert Image(black).save(tmp_path / "out" / "cat.png", overwrite=False).name == "cat-3.png"
    (tmp_path / "file").touch()
    with pytest.raises(OutputProblem, match=r"file is a file, not a folder|was not written"):
        next_free_path(tmp_path / "file", "cat")
    with pytest.raises(OutputProblem, match="was not written"):
        next_free_path(tmp_path, "a" * 300)


def test_writers_at_once_never_share_a_name(tmp_path: Path) -> None:
    start = threading.Barrier(12)

    def write(value: int) -> None:
        image = Image(numpy.full((8, 8, 3), value, numpy.uint8))
        start.wait()
        for _ in range(5):
            image.save(tmp_path / "a.png", overwrite=False)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [int(read_image(path).pixels[0, 0, 0]) for path in tmp_path.glob("a*.png")]
    assert sorted(found) == sorted(list(range(12)) * 5)


# What is read, and what is not


def png_of_size(width: int, height: int, depth: int = 1) -> bytes:
    """A valid grey PNG that costs little to hold and much to decode."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (width * depth + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_of_size(kind: bytes, width: int, height: int) -> bytes:
    """The head of a WebP."""
    if kind == b"VP8X":
        body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(8)
    else:
        body = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def test_a_picture_too_large_is_refused_before_it_is_decoded() -> None:
    jpeg = bytearray(with_comment(numpy.zeros((8, 8, 3), numpy.uint8), b""))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 13000, 13000)
    bombs = [png_of_size(13000, 13000), png_of_size(20000, 20000), bytes(jpeg)]
    bombs += [webp_of_size(kind, 13000, 13000) for kind in (b"VP8X", b"VP8L", b"VP8 ")]
    for bomb in bombs:
        assert len(bomb) < 80_000
        began = time.process_time()
        with pytest.raises(FileProblem, match=r"is (13000x13000|20000x20000); pictures of up to 16\.8 million pixels"):
            read_image(bomb)
        assert time.process_time() - began < 10


def test_the_largest_picture_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_image(png_of_size(4096, 4096)).pixels.shape == (4096, 4096, 3)
    with pytest.raises(FileProblem, match="4097x4096"):
        read_image(png_of_size(4097, 4096))


@pytest.mark.parametrize("kind", ["lossy", "lossless", "alpha"])
def test_sizes_of_real_webp_files_are_read_from_their_heads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    picture = PIL.Image.new(
        "RGBA" if kind == "alpha" else "RGB", (300, 77), (9, 9, 9, 9)[: 4 if kind == "alpha" else 3]
    )
    picture.save(buffer, "WEBP", lossless=kind == "lossless")
    assert (read_image(buffer.getvalue()).width, read_image(buffer.getvalue()).height) == (300, 77)
    monkeypatch.setattr("avila_diffusion.image_files.MAX_READ_PIXELS", 300 * 77 - 1)
    with pytest.raises(FileProblem, match="300x77"):
        read_image(buffer.getvalue())


def test_a_huge_file_is_not_loaded(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.truncate(300 << 20)  # no room on disk is taken
    with pytest.raises(FileProblem, match="has more than 256 MiB; give a PNG, JPEG, WebP, AVIF or GIF file"):
        read_image(tmp_path / "model.safetensors")


def test_other_files_are_refused(tmp_path: Path, black: Pixels) -> None:
    for format_name in ("BMP", "TIFF", "PPM", "ICO"):
        buffer = io.BytesIO()
        PIL.Image.fromarray(black).save(buffer, format_name)
        with pytest.raises(
            FileProblem, match="the picture is not a PNG, JPEG, WebP, AVIF or GIF picture; give one of these"
        ):
            read_image(buffer.getvalue())
    for data in (b"", b"hello", b"RIFF\0\0\0\0WEBP", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        with pytest.raises(FileProblem):
            read_image(data)
    for path in (tmp_path / "none.png", tmp_path, "a\0b"):
        with pytest.raises(FileProblem, match="cannot be read"):
            read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.avif"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_pictures_end_in_one_kind_of_error(tmp_path: Path, pixels: Pixels, name: str) -> None:
    whole = Image(pixels, "Steps: 1, 日本").save(tmp_path / name).read_bytes()
    draw = random.Random(11)
    refused = 0
    damaged = [whole[: draw.randrange(len(whole))] for _ in range(100)]
    for _ in range(300):
        copy = bytearray(whole)
        for _ in range(draw.choice((1, 1, 5))):
            copy[draw.randrange(min(len(copy), draw.choice((60, 200, len(copy)))))] = draw.randrange(256)
        damaged.append(bytes(copy))
    for data in damaged:
        try:
            read_image(data)
        except FileProblem as problem:
            refused += 1
            assert "\n" not in str(problem)
    assert refused > 100


def encoded(picture: PIL.Image.Image, **options: Any) -> bytes:
    """As PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_transparency_is_laid_on_white() -> None:
    clear = PIL.Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    assert read_image(encoded(clear)).pixels.tolist() == [[[255, 255, 255], [127, 127, 127]]]
    palette = PIL.Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert read_image(encoded(palette)).pixels.tolist() == [[[10, 20, 30]]]
    assert read_image(encoded(palette, transparency=1)).pixels.tolist() == [[[255, 255, 255]]]


def test_grey_of_sixteen_bits_keeps_its_range() -> None:
    grey = PIL.Image.fromarray(numpy.array([[0, 0x1234, 0x8000, 0xFFFF]], numpy.uint16))
    assert read_image(encoded(grey)).pixels[0, :, 1].tolist() == [0, 0x12, 0x80, 0xFF]


def test_a_photo_is_turned_upright() -> None:
    picture = PIL.Image.new("RGB", (16, 8), "white")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    assert read_image(buffer.getvalue()).pixels.shape == (16, 8, 3)


def test_text_behind_the_pixels_is_found(pixels: Pixels) -> None:
    info = PngInfo()
    info.add_text("parameters", "late", zip=True)
    data = encoded(PIL.Image.fromarray(pixels), pnginfo=info)
    start = data.index(b"zTXt") - 4
    size = 12 + struct.unpack(">I", data[start : start + 4])[0]
    chunk, rest = data[start : start + size], data[:start] + data[start + size :]
    end = rest.index(b"IEND") - 4
    assert read_image(rest[:end] + chunk + rest[end:]).infotext == "late"


# Sizes of models


@pytest.mark.parametrize("size", [(64, 64), (512, 768), (8192, 72)])
def test_sizes_that_models_make_pass(size: tuple[int, int]) -> None:
    check_model_size(*size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((500, 512), "width 500 is not a multiple of 8; 496 or 504 would do"),
        ((512, 767), "height 767 is not a multiple of 8; 760 or 768 would do"),
        ((512, 65), "height 65 is not a multiple of 8; 64 or 72 would do"),
        ((63, 512), "width 63 is too small; the smallest is 64"),
        ((512, 8), "height 8 is too small; the smallest is 64"),
        ((-8, 512), "width -8 is too small"),
    ],
)
def test_other_sizes_are_refused_with_the_nearest(size: tuple[int, int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        check_model_size(*size)


# Models of one size


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((128, 128), (128, 128)),
        ((512, 512), (128, 128)),
        ((768, 512), (168, 112)),
        ((512, 768), (112, 168)),
        ((640, 480), (160, 120)),
        ((1920, 1080), (184, 104)),
        ((1024, 512), (176, 88)),
        ((400, 100), (256, 64)),
        ((8192, 8191), (128, 128)),
    ],
)
def test_the_size_a_model_of_128_draws_at(asked: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert drawing_size(*asked, 128) == drawn


@pytest.mark.parametrize("size", [64, 72, 128, 512])
def test_drawn_sizes_are_possible_and_little_is_cut_off(size: int) -> None:
    for width in range(128, 513, 23):
        for height in range(128, 513, 31):
            across, down = drawing_size(width, height, size)
            assert across % 8 == down % 8 == 0
            assert abs(across * down / size**2 - 1) <= 0.2
            scale = max(width / across, height / down)
            assert max(across - width / scale, down - height / scale) <= 8  # of the drawn pixels, both sides together


def test_a_picture_too_long_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^513x128 is longer than 4:1, .*; ask for at most 512x128$"):
        drawing_size(513, 128, 128)


def test_resizing_cuts_off_alike_on_both_sides() -> None:
    pixels = numpy.zeros((64, 96, 3), numpy.uint8)
    pixels[:, 16:80] = 200
    assert (resize(pixels, 256, 256)[:, 16:-16] == 200).all()  # the 16 columns at either side are gone
    high = resize(pixels.transpose(1, 0, 2).copy(), 256, 256)
    assert (high == resize(pixels, 256, 256).transpose(1, 0, 2)).all()
    assert (resize(pixels, 96, 64) == pixels).all()
    assert resize(pixels, 31, 77).shape == (77, 31, 3)
    assert resize(pixels, 1, 1).shape == (1, 1, 3)


def test_resizing_keeps_places() -> None:
    """A gradient stays where it is: no shift by half a pixel."""
    ramp = numpy.repeat(numpy.linspace(0, 252, 64).astype(numpy.uint8)[None, :, None], 64, 0).repeat(3, 2)
    large = resize(ramp, 256, 256).astype(int)
    assert numpy.abs(large[:, 16:-16] + large[:, ::-1][:, 16:-16] - 252).max() <= 2
