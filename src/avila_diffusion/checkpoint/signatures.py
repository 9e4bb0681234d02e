"""What a file is, told by its first bytes and never by its suffix.

A `.safetensors` suffix on a pickle has led other programs to run it (InvokeAI #2946), and many a "broken model" is a
web page, a Git LFS pointer or an interrupted download under a model's name: each gets its own line.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Literal

from ..errors import FileProblem, HeaderError, ModelNotFound

Kind = Literal["safetensors", "zip", "pickle", "other"]

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""Released checkpoints have headers below 1 MB; a larger one than this is not read."""

LEGACY_TORCH_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
"""The pickled number that files of torch before 1.6 begin with, after the two bytes of the protocol."""

UNKNOWN = "of no known kind"

_TAR_MAGIC_AT = 257
_HEAD_BYTES = 512

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file (quantized weights of the ggml family)"),
    (b"version https://git-lfs", "a Git LFS pointer, cloned without the file itself: run `git lfs pull`"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program"),
)


def identify(path: str | os.PathLike[str]) -> Kind:
    """What the file at `path` is: "safetensors", "zip" or "pickle" (both are how torch saves), or "other".

    Raises ModelNotFound where there is no such file and FileProblem where it cannot be read.
    """
    where = Path(path)
    with open_regular(where) as file:
        return kind_of(file.read(_HEAD_BYTES))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; folders, pipes and devices are refused before they are opened (a pipe would
    block).
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise HeaderError(f"{path} is a folder; give the .safetensors file inside it")
        if not stat.S_ISREG(mode):
            raise HeaderError(f"{path} is a pipe or a device, not a model file")
        return path.open("rb")
    except FileNotFoundError:
        raise ModelNotFound(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as problem:
        raise FileProblem(f"{str(path)!r} cannot be read: {_reason(problem)}") from None


def kind_of(head: bytes) -> Kind:
    """The kind of a file whose first bytes (up to 512) are `head`."""
    if int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES and head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    return "other"


def describe(head: bytes) -> str:
    """A phrase for a file that is neither safetensors nor pickled, from its first bytes: "a PNG picture"."""
    if not head:
        return "empty (0 bytes): the download or copy did not happen"
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive (a packed folder, or torch before 0.2): unpack it, or save it again with a newer torch"
    for magic, phrase in _SIGNATURES:
        if head.startswith(magic):
            return phrase
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return "a web page: the download saved a log-in or error page in place of the model"
    if text.startswith((b'{"', b"{\n", b"{\r", b"{ ", b"[")):
        return "a JSON text (a configuration or an error answer of a server)"
    if not head.strip(b"\0"):
        return "filled with zero bytes: an interrupted download that reserved its space"
    return UNKNOWN


def _reason(problem: Exception) -> str:
    return problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
