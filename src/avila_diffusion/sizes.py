"""How large a run draws that begins with a picture, and how large what it makes is. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import RequestError
from .limits import MAX_PIXELS, MAX_SIDE

if TYPE_CHECKING:
    from .request import GenerateRequest, ResizeMode


def own_size(request: GenerateRequest) -> tuple[int, int] | None:
    """Width and height of the picture that a run begins with, with what outpainting adds; None for text alone."""
    if request.image is None:
        return None
    (width, height), (left, upper, right, lower) = request.image.size, request.outpaint or (0, 0, 0, 0)
    return width + left + right, height + upper + lower


def asked_size(request: GenerateRequest, size: int) -> tuple[int, int]:
    """Width and height that are drawn; those that are open by the picture that the run begins with, where it is drawn whole.

    size: default width and height in pixels. Raises RequestError where one side makes too much of the other.
    """
    width, height, own = request.width, request.height, own_size(request)
    if width is not None and height is not None:
        return width, height
    if own is None or (request.masked and request.inpaint_area == "masked"):
        return width or size, height or size
    if width is None and height is None:
        from .masking import default_size

        return default_size(*own, size * size)
    return _in_proportion(request, own)


def _in_proportion(request: GenerateRequest, own: tuple[int, int]) -> tuple[int, int]:
    """The side that was given, and the one that keeps the picture's proportions beside it, to the nearest multiple of 8."""
    from .images import MULTIPLE, SMALLEST

    across, down = own
    given, ratio = (request.width or 0, down / across) if request.width else (request.height or 0, across / down)
    # Less than the smallest size is drawn by models of one size only, which take any.
    least = SMALLEST if given >= SMALLEST else MULTIPLE
    other = max(round(given * ratio / MULTIPLE) * MULTIPLE, least)
    if other > MAX_SIDE or given * other > MAX_PIXELS:
        side, open_side = ("width", "height") if request.width else ("height", "width")
        raise RequestError(
            f"image is {across}x{down}{' with outpaint' if request.outpaint else ''}, and a {side} of {given:,} makes its "
            f"{open_side} {other:,}; at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} pixels are drawn: ask for less {side}, "
            f"or give {open_side} too"
        )
    return (given, other) if request.width else (other, given)


def resize_mode_of(request: GenerateRequest) -> ResizeMode:
    """How the picture is brought to the size that is drawn: as asked for, but a picture with a mask keeps its own size where
    none is asked for, so that nothing is lost of what is kept. "masked" cuts out, and has no picture at its new size."""
    if request.masked and request.inpaint_area == "masked":
        return "resize" if request.resize_mode in ("latent", "keep") else request.resize_mode
    if request.masked and request.width is None and request.height is None:
        return "keep"
    return request.resize_mode


def finished_size(request: GenerateRequest) -> tuple[int, int]:
    """Width and height of what a resolved request of one pass makes: its own, or that of the picture that it goes back into."""
    own = own_size(request)
    back = request.resize_mode == "keep" or (request.masked and request.inpaint_area == "masked")
    return own if own is not None and back else (request.width or 0, request.height or 0)
