"""Several pictures side by side in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from .errors import RequestError
from .image_files import MAX_READ_PIXELS
from .images import Image


def make_grid(images: Sequence[Image]) -> Image:
    """Pictures in rows, about as many rows as columns; the infotext is that of the first. Empty places are black.

    Raises RequestError for no picture, and for more pixels than pictures may have.
    """
    if not images:
        raise RequestError("a grid needs at least one picture")
    height, width = max(image.height for image in images), max(image.width for image in images)
    columns, rows = grid_size(len(images), width, height)
    pixels = numpy.zeros((rows * height, columns * width, 3), numpy.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * height, number % columns * width
        pixels[top : top + image.height, left : left + image.width] = image.pixels
    return Image(pixels, images[0].infotext, images[0].seed)


def grid_size(pictures: int, width: int, height: int) -> tuple[int, int]:
    """(columns, rows) of a grid of so many pictures, the largest sides of which are these. Raises RequestError for more pixels
    than pictures may have."""
    rows = round(pictures**0.5)
    columns = -(-pictures // rows)
    if rows * height * columns * width > 4 * MAX_READ_PIXELS:
        raise RequestError(f"a grid of {columns}x{rows} pictures of {width}x{height} is too large; make fewer of them")
    return columns, rows
