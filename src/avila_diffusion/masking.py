"""Pictures fitted to a size, masks, and pictures put together again: what AUTOMATIC1111's WebUI 1.10 does, on arrays.

numpy and Pillow, no torch. Pixels are (height, width, 3), masks (height, width), both uint8; a mask is 255 where the
picture may change and 0 where it is kept. No argument is changed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy
import PIL.Image
import PIL.ImageFilter

from .images import MULTIPLE, SMALLEST
from .limits import MAX_SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[numpy.uint8]

Mode = Literal["resize", "crop", "fill"]

_LANCZOS = PIL.Image.Resampling.LANCZOS
_FILTERS = {"Lanczos": _LANCZOS, "Nearest": PIL.Image.Resampling.NEAREST}
_FILL_LAYERS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))
"""(standard deviation in pixels, how often it is laid on): the widest reaches the middle of what is masked."""

_ROWS = 32
"""Blurred at once: so many stay near the processor."""


class Box(NamedTuple):
    """A part of a picture: from column `left` to before `right`, from row `top` to before `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


def fit(pixels: Pixels, width: int, height: int, mode: Mode) -> Pixels:
    """Pixels or a mask at another size.

    mode: "resize" disregards the proportions; "crop" covers the new size and cuts off what is over, on both sides alike;
    "fill" stays within it, and repeats the edges for the rest.
    """
    picture = PIL.Image.fromarray(pixels)
    if mode == "resize":
        return numpy.array(picture.resize((width, height), _LANCZOS))
    resized = picture.resize(_resized(picture.size, width, height, mode), _LANCZOS)
    left, top = width // 2 - resized.width // 2, height // 2 - resized.height // 2
    if mode == "crop":
        return numpy.array(resized.crop((-left, -top, width - left, height - top)))
    fitted = PIL.Image.new(picture.mode, (width, height))
    fitted.paste(resized, (left, top))
    # An edge is what resizing makes of a strip without extent: for Pillow's bicubic the last row and an eighth of its
    # difference to the one before. Both strips are as long as they may be: where the WebUI's halves do not come out
    # even, it leaves a black line.
    across, down = resized.size
    for at, strip, edge in (
        ((0, 0), (width, top), (0, 0, across, 0)),
        ((0, top + down), (width, height - top - down), (0, down, across, down)),
        ((0, 0), (left, height), (0, 0, 0, down)),
        ((left + across, 0), (width - left - across, height), (across, 0, across, down)),
    ):
        if all(strip):
            fitted.paste(resized.resize(strip, box=edge), at)
    return numpy.array(fitted)


def blurred(mask: Pixels, x: float, y: float) -> Pixels:
    """A mask with soft edges: Gaussians of x pixels along the rows, then y along the columns; 0 leaves as it is.

    Rounded after each. The kernel ends after two and a half standard deviations; beyond the border the mask is
    mirrored, without its last pixels twice. Sums run in one order and in 64 bits, so that every machine rounds alike.
    """
    return _blurred_rows(_blurred_rows(mask, x).T, y).T.copy()


def doubled(mask: Pixels) -> Pixels:
    """Twice the values, at most 255: what a blurred mask becomes before the kept part of a whole picture is laid over."""
    return numpy.minimum(mask.astype(numpy.uint16) * 2, 255).astype(numpy.uint8)


def inverted(mask: Pixels) -> Pixels:
    """255 where it was 0."""
    return 255 - mask


def region(mask: Pixels, padding: int, width: int, height: int) -> Box | None:
    """The part of a picture that has to be worked on where only what is masked is; None for an empty mask.

    The box of all that is not 0, `padding` pixels more on every side, made wider or higher to the proportions of
    width:height. What that adds lies before and behind alike; what then lies outside the picture is moved to the other
    side, and left out where there is no room.

    >>> mask = numpy.zeros((100, 200), numpy.uint8)
    >>> mask[40:60, 150:190] = 255
    >>> region(mask, 4, 512, 512)
    Box(left=146, top=26, right=194, bottom=74)
    """
    rows, columns = numpy.flatnonzero(mask.any(axis=1)), numpy.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    down, across = mask.shape
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, across)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, down)
    # In floats, as the WebUI reckons: whole numbers would sometimes come out one pixel higher.
    proportions = width / height
    if (right - left) / (bottom - top) > proportions:
        top, bottom = _widened(top, bottom, int((right - left) / proportions - (bottom - top)), down)
    else:
        left, right = _widened(left, right, int((bottom - top) * proportions - (right - left)), across)
    return Box(left, top, right, bottom)


def filled(pixels: Pixels, mask: Pixels) -> Pixels:
    """The masked part painted with colours from around it; black where nothing is near enough."""
    kept = _kept(pixels, mask)
    painted = PIL.Image.new("RGBA", kept.size)
    for radius, times in _FILL_LAYERS:
        # Pillow's own Gaussian, of three boxes, which is what users of the WebUI see.
        layer = kept.filter(PIL.ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            painted.alpha_composite(layer)
    return numpy.array(painted.convert("RGB"))


def paste(original: Pixels, made: Pixels, mask: Pixels, box: Box | None = None) -> Pixels:
    """A finished part put back: `original` where the mask is 0, `made` where it is 255, blended in between.

    made: what stands in `box`, at any size; without a box the whole picture at the size of `original`. Outside of the box
    everything is kept.
    """
    whole = numpy.dstack([original, numpy.full(original.shape[:2], 255, numpy.uint8)])
    left, top, right, bottom = box or Box(0, 0, original.shape[1], original.shape[0])
    whole[top:bottom, left:right, :3] = fit(made, right - left, bottom - top, "crop")
    picture = PIL.Image.fromarray(whole)
    picture.alpha_composite(_kept(original, mask).convert("RGBA"))
    return numpy.array(picture.convert("RGB"))


def extended(pixels: Pixels, left: int, top: int, right: int, bottom: int) -> tuple[Pixels, Pixels]:
    """(a picture with so many pixels more on each side, its edges repeated; a mask, 255 on what is new)."""
    sides = ((top, bottom), (left, right))
    kept = numpy.zeros(pixels.shape[:2], numpy.uint8)
    return numpy.pad(pixels, (*sides, (0, 0)), mode="edge"), numpy.pad(kept, sides, constant_values=255)


def upscaled(pixels: Pixels, width: int, height: int, how: str) -> Pixels:
    """Pixels at another size, by one of the WebUI's upscalers that are no networks.

    They enlarge in proportion until both sides are covered, to multiples of 8; what is left is done by Lanczos, and so is
    all of it where nothing is enlarged. "None" is Lanczos in one step.
    """
    picture = PIL.Image.fromarray(pixels)
    scale = max(width / picture.width, height / picture.height)
    if how != "None" and scale > 1:
        across, down = picture.width * scale, picture.height * scale
        picture = picture.resize((int(across), int(down)), _FILTERS[how])
        picture = picture.resize((_in_eights(across), _in_eights(down)), _LANCZOS)
    return numpy.array(picture.resize((width, height), _LANCZOS))


def default_size(width: int, height: int, model_pixels: int) -> tuple[int, int]:
    """The size of a picture that is made from another one, where none is asked for: about the other one's.

    Cut down to multiples of 8, at least 64. model_pixels: of the pictures that the model draws best. More than four times
    as many are shrunk to about that, in proportion, and fewer than a quarter enlarged to about model_pixels.

    >>> default_size(517, 300, 512 * 512), default_size(4000, 3000, 512 * 512), default_size(100, 100, 512 * 512)
    ((512, 296), (1176, 880), (512, 512))
    """
    most = 4 * model_pixels
    wanted = width * height
    if wanted > most:
        wanted = most
    elif 4 * wanted < model_pixels:
        wanted = model_pixels
    scaled = (math.isqrt(side * side * wanted // (width * height)) for side in (width, height))
    across, down = (max(side // MULTIPLE * MULTIPLE, SMALLEST) for side in scaled)
    # A picture that is much longer than wide does not come out in proportion.
    return _at_most(across, most // down), _at_most(down, most // across)


def _resized(size: tuple[int, int], width: int, height: int, mode: Mode) -> tuple[int, int]:
    """The size at which a picture covers width x height ("crop") or lies within ("fill")."""
    across, down = size
    wider = width * down > across * height  # than the picture is
    if wider == (mode == "crop"):
        return width, max(down * width // across, 1)
    return max(across * height // down, 1), height


def _blurred_rows(mask: Pixels, sigma: float) -> Pixels:
    reach = int(2.5 * sigma + 0.5)
    if not reach:
        return mask
    weights = numpy.exp(-((numpy.arange(reach + 1) / sigma) ** 2) / 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    width = mask.shape[1]
    columns = _mirrored(width, reach)
    result = numpy.empty(mask.shape, numpy.uint8)
    for start in range(0, len(mask), _ROWS):
        wide = mask[start : start + _ROWS, columns].astype(numpy.float64)
        total = weights[0] * wide[:, reach : reach + width]
        for step in range(1, reach + 1):
            pair = wide[:, reach - step : reach - step + width] + wide[:, reach + step : reach + step + width]
            pair *= weights[step]
            total += pair
        result[start : start + _ROWS] = numpy.rint(total)
    return result


def _mirrored(length: int, reach: int) -> NDArray[numpy.int64]:
    """The places of a row and of `reach` more at either end, which are those of the row again: … 2 1 0 1 2 …"""
    period = max(2 * (length - 1), 1)
    return numpy.abs((numpy.arange(-reach, length + reach) + length - 1) % period - (length - 1))


def _widened(start: int, stop: int, more: int, most: int) -> tuple[int, int]:
    """A stretch made longer, half at either end, within 0 to `most`."""
    start, stop = start - more // 2, stop + more - more // 2
    start -= max(stop - most, 0)
    stop = min(stop, most)
    return (0, min(stop - start, most)) if start < 0 else (start, stop)


def _kept(pixels: Pixels, mask: Pixels) -> PIL.Image.Image:
    """The part that is not masked, in colours that are multiplied by their alpha."""
    return PIL.Image.fromarray(numpy.dstack([pixels, inverted(mask)])).convert("RGBa")


def _in_eights(length: float) -> int:
    return max(int(length // MULTIPLE) * MULTIPLE, MULTIPLE)


def _at_most(side: int, most: int) -> int:
    return max(min(side, most // MULTIPLE * MULTIPLE, MAX_SIDE), SMALLEST)
