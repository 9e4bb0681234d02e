"""How large the second pass of a high-resolution fix is. No torch."""

from __future__ import annotations

from .errors import RequestError
from .images import check_model_size
from .limits import LATENT_UPSCALERS, MAX_PIXELS, MAX_SIDE
from .request import GenerateRequest


def is_latent(request: GenerateRequest) -> bool:
    """Whether the second pass begins with the first one's latent, not with its picture."""
    return request.hires_upscaler in LATENT_UPSCALERS


def enlarged(request: GenerateRequest) -> tuple[int, int]:
    """Width and height that the first pass is enlarged to. Where both were asked for it covers them, and is cut afterwards."""
    width, height = request.width or 0, request.height or 0
    if request.hires_scale is not None:
        return int(width * request.hires_scale), int(height * request.hires_scale)
    across, down = request.hires_width, request.hires_height
    if across is None:
        assert down is not None
        return down * width // height, down
    if down is None or width / height < across / down:
        return across, across * height // width
    return down * width // height, down


def latent_size(request: GenerateRequest, scale: int) -> tuple[int, int]:
    """Height and width of the second pass' latent, in cells of `scale` pixels. Raises RequestError for what is not drawn."""
    width, height = enlarged(request)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(f"the second pass would be {width}x{height}; at most {MAX_PIXELS:,} pixels are drawn")
    cut_x, cut_y = _overhang(request, width, height, scale)
    size = height // scale - cut_y, width // scale - cut_x
    try:
        check_model_size(size[1] * scale, size[0] * scale)
    except RequestError as error:
        what = (
            "hires_scale"
            if request.hires_scale is not None
            else "hires_width"
            if request.hires_width
            else "hires_height"
        )
        raise RequestError(f"{what} asks for a second pass of {width}x{height}: {error}") from None
    return size


def _overhang(request: GenerateRequest, width: int, height: int, scale: int) -> tuple[int, int]:
    """Columns and rows of latent that are cut off, where both sides were asked for."""
    if request.hires_width is None or request.hires_height is None:
        return 0, 0
    return (width - request.hires_width) // scale, (height - request.hires_height) // scale
