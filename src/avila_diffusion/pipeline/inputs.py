"""A request's pictures, brought to the size that is drawn, and the way back into the picture that was given. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..masking import Box, blurred, doubled, extended, filled, fit, inverted, paste, region
from ..request import GenerateRequest

Pixels = npt.NDArray[np.uint8]
"""(height, width, 3), 0 to 255."""
Mask = npt.NDArray[np.uint8]
"""(height, width), 255 where it is painted."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The picture that a painted part goes back into. box: where it goes, None where it was drawn whole."""

    original: Pixels
    mask: Mask
    box: Box | None = None

    def around(self, made: Pixels) -> Pixels:
        """What was made, where the mask lets it be seen; elsewhere the original, byte for byte."""
        return paste(self.original, made, self.mask, self.box)


@dataclass(frozen=True, eq=False)
class Inputs:
    """pixels: (height, width, 3), to encode; None where there is a depth map alone. mask: of the same size, None without.
    depth: (h, w), 0 to 1, of any size. frame: None where the result is the whole picture.
    """

    pixels: Pixels | None
    mask: Mask | None = None
    depth: npt.NDArray[np.float32] | None = None
    frame: Frame | None = None


def read_inputs(request: GenerateRequest, drawn: GenerateRequest) -> Inputs | None:
    """The pictures of a resolved request, None where there are none. drawn: it at the size that the networks work at.

    As AUTOMATIC1111: the mask is blurred at the picture's own size; "masked" cuts out what is painted, with what is around
    it; what is drawn is as large as asked for, and goes back where it came from. A picture that keeps its size is cut out
    whole. Raises FileProblem for damaged files.
    """
    depth = None if request.depth is None else request.depth.depth()
    if request.image is None:
        return None if depth is None else Inputs(None, depth=depth)
    image, mask = _extended(request.image.rgb(), _mask(request), request)
    width, height = drawn.width or 0, drawn.height or 0
    mode, everything = request.resize_mode, Box(0, 0, image.shape[1], image.shape[0])
    if mode == "latent":  # which no mask goes with
        return Inputs(image, depth=depth)
    if mask is None and mode != "keep":
        return Inputs(fit(image, width, height, mode), depth=depth)
    if mask is None:
        frame = Frame(image, np.full(image.shape[:2], 255, np.uint8), everything)
        return Inputs(fit(image, width, height, "fill"), depth=depth, frame=frame)
    if request.mask_blur:
        mask = blurred(mask, request.mask_blur, request.mask_blur)
    if request.inpaint_area == "masked":
        box = region(mask, request.mask_padding, width, height) or everything
        frame = Frame(image, mask, box)
        pixels, painted = (fit(_cut(one, box), width, height, "fill") for one in (image, mask))
    elif mode == "keep":
        frame = Frame(image, doubled(mask), everything)
        pixels, painted = (fit(one, width, height, "fill") for one in (image, mask))
    else:
        pixels, painted = (fit(one, width, height, mode) for one in (image, mask))
        asked = request.width or 0, request.height or 0
        original, over = (fit(one, *asked, mode) for one in (image, mask))
        frame = Frame(original, doubled(over))
    if request.masked_content != "original":
        pixels = filled(pixels, painted)
    return Inputs(pixels, painted, depth, frame)


def _mask(request: GenerateRequest) -> Mask | None:
    """The mask that was given, at the size of the picture that was given."""
    if request.mask is None or request.image is None:
        return None
    mask = request.mask.mask(hard=not request.mask_soft)
    width, height = request.image.size
    if mask.shape != (height, width):
        mask = fit(mask, width, height, "resize")
    return inverted(mask) if request.mask_invert else mask


def _extended(image: Pixels, mask: Mask | None, request: GenerateRequest) -> tuple[Pixels, Mask | None]:
    """Picture and mask with what outpainting adds."""
    if request.outpaint is None:
        return image, mask
    larger, new = extended(image, *request.outpaint)
    if mask is not None:
        left, upper, right, lower = request.outpaint
        new = np.maximum(new, np.pad(mask, ((upper, lower), (left, right))))
    return larger, new


def _cut(pixels: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    left, upper, right, lower = box
    return np.ascontiguousarray(pixels[upper:lower, left:right])
