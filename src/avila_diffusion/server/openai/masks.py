"""OpenAI's masks as ours: what is transparent is painted there, what is white here. numpy and Pillow; call it off the loop."""

from __future__ import annotations

from typing import Any

import numpy

from ...errors import FileProblem, RequestError
from ...pictures import Picture
from ..settings import Limits
from ..waiting import check_input
from .errors import BadField

MASKED_STRENGTH = 0.9
"""Strength in a masked area, which is to become something else."""
EDIT_STRENGTH = 0.75
VARIATION_STRENGTH = 0.6


def read_picture(name: str, data: bytes, file_name: str | None, limits: Limits) -> Picture:
    """A picture that came in a form. Raises BadField, and TooLarge for more pixels than are read."""
    try:
        picture = Picture.of(data, name)
    except (FileProblem, RequestError) as error:
        raise BadField(name, str(error), "invalid_image_file") from None
    check_input(picture, name, limits)
    return Picture(data, file_name)


def edit_values(image: Picture, mask: Picture | None) -> dict[str, Any]:
    """Fields of a request that edits a picture: the part that a mask lets through, or that is transparent, or all of it.

    Raises BadField for a mask that lets nothing through or is of another size.
    """
    if mask is not None and mask.size != image.size:
        raise BadField(
            "mask", f"mask is {_size(mask)} and image is {_size(image)}; send a mask of the picture's own size"
        )
    clear = _transparency("image" if mask is None else "mask", image if mask is None else mask)
    if clear is None and mask is not None:
        raise BadField(
            "mask", "mask has no transparent pixel; what is transparent in it is painted anew, so make some of it so"
        )
    if clear is None:
        return {"image": image, "strength": EDIT_STRENGTH}
    return {"image": image, "mask": clear, "strength": MASKED_STRENGTH, "masked_content": "fill"}


def _transparency(name: str, picture: Picture) -> Picture | None:
    """A mask of ours, white where the picture is transparent; None where it is nowhere."""
    try:
        seen = picture.alpha()
    except FileProblem as error:
        raise BadField(name, str(error), "invalid_image_file") from None
    if seen is None or seen.min() == 255:
        return None
    return Picture.of(numpy.subtract(255, seen, dtype=numpy.uint8), "mask")


def _size(picture: Picture) -> str:
    return "x".join(map(str, picture.size))
