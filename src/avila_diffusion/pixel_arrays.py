"""Pixels that other libraries hold, as a PNG: arrays of numpy and its kin, torch tensors, Pillow's images.

numpy and Pillow, no torch: a tensor is known by what it can do.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy
import PIL.Image

from .errors import RequestError
from .image_files import check_size, reading, upright

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDING = 1e-4
"""By how much floats may lie outside 0 to 1, as they do after a computation in 32 bits."""
_ARRAYS = ("__array__", "__array_interface__", "__array_struct__")


def png_of(value: object, what: str) -> bytes:
    """A PNG of the pixels, without anything beside them.

    value: a Pillow image of any mode, turned upright as its Exif says, or an array or tensor (height, width), or with 1, 3
    or 4 channels behind: bool, uint8, uint16, or floats from 0 to 1. 16 bits are kept where there is one channel, to which
    floats are rounded too; else 8. Errors begin with `what`. Raises RequestError, and FileProblem for too many pixels
    and for a Pillow image whose file is damaged.
    """
    pixels = _of_pillow(value, what) if isinstance(value, PIL.Image.Image) else _of_array(_as_array(value, what), what)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(
        buffer, "PNG", compress_level=1
    )  # the bytes are for us, and 6 takes 4 times as long
    return buffer.getvalue()


def _of_pillow(picture: PIL.Image.Image, what: str) -> NDArray[Any]:
    check_size(picture.size, what)
    with reading(what):
        picture = upright(picture)
        if picture.mode in ("La", "PA"):  # Pillow knows no direct way from these to RGBA or RGB
            picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
        if picture.has_transparency_data and picture.mode[0] not in "IF":
            return numpy.asarray(picture.convert("RGBA"))
        if picture.mode in ("1", "L"):
            return numpy.asarray(picture.convert("L"))
        if picture.mode[0] not in "IF":
            return numpy.asarray(picture.convert("RGB"))
    pixels = numpy.asarray(picture)
    if picture.mode == "I" and pixels.min() >= 0 and pixels.max() <= 65535:  # as Pillow used to read 16 bits of grey
        pixels = pixels.astype(numpy.uint16)
    return _of_array(pixels, what)


def _as_array(value: Any, what: str) -> NDArray[Any]:
    if not any(hasattr(value, name) for name in _ARRAYS):
        raise RequestError(
            f"{what} is of type {type(value).__name__}; give a path, the bytes of a file, an image or an array of pixels"
        )
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value  # numpy has no bfloat16
        return numpy.asarray(value)
    except Exception as error:  # whatever another library raises
        raise RequestError(f"{what} cannot be read as an array ({' '.join(str(error).split())[:200]})") from None


def _of_array(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise RequestError(f"{what} has the shape {array.shape}; it must be (height, width), or with 1, 3 or 4 behind")
    check_size((array.shape[1], array.shape[0]), what)
    if array.dtype == numpy.uint8:
        return numpy.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(numpy.uint8) * 255
    if array.dtype.kind == "f":
        return _of_floats(array, what)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return array.astype(numpy.uint16) if array.ndim == 2 else (array >> 8).astype(numpy.uint8)
    raise RequestError(f"{what} is an array of {array.dtype}; it must be bool, uint8, uint16, or floats from 0 to 1")


def _of_floats(array: NDArray[Any], what: str) -> NDArray[Any]:
    if not numpy.isfinite(array).all():
        raise RequestError(f"{what} has values that are NaN or infinite; floats must be from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise RequestError(f"{what} has values from {low:g} to {high:g}; floats must be from 0 to 1")
    inside = array.astype(numpy.float32).clip(0, 1)
    most, kind = (65535, numpy.uint16) if array.ndim == 2 else (255, numpy.uint8)
    rounded: NDArray[Any] = numpy.rint(inside * most).astype(kind)
    return rounded
