"""Options of the command line for pictures that a run begins with, for a second pass, a refiner and tiling."""

from __future__ import annotations

import argparse
import re
from typing import Any

from ..errors import RequestError
from .parser import typed_text

SIDES = ("left", "up", "right", "down")
_SIDE = re.compile(r"(left|up|top|right|down|bottom)=(\d{1,6})")
_OTHERWISE = {"top": "up", "bottom": "down"}


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add them. What is not given is None."""
    _add_picture(parser.add_argument_group("from a picture"))
    _add_mask(parser.add_argument_group("a part of a picture"))
    _add_second(parser.add_argument_group("high-resolution fix, refiner, tiling"))


def _add_picture(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-i", "--image", "--init-img", metavar="FILE", help="begin with this picture")
    group.add_argument(
        "--strength",
        "--denoising-strength",
        type=float,
        metavar="X",
        help="0 to 1, how far picture or first pass is changed; default 0.75",
    )
    group.add_argument("--exact-steps", action="store_true", default=None, help="run all steps, not a share of them")
    group.add_argument(
        "--resize-mode",
        choices=("resize", "crop", "fill", "latent", "keep"),
        help="how it becomes WxH; default resize, or keep where a part is painted and no size asked for",
    )
    group.add_argument("--extra-noise", type=float, metavar="X", help="0 to 1, noise on top; default 0")
    group.add_argument("--noise-multiplier", type=float, metavar="X", help="of the first noise; default 1")
    group.add_argument(
        "--image-cfg", dest="image_guidance_scale", type=float, metavar="X", help="of instruct-pix2pix; default 1.5"
    )
    group.add_argument("--depth", metavar="FILE", help="depth map for depth models, near is light")


def _add_mask(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--mask", metavar="FILE", help="white is painted; of a picture with alpha, what is opaque")
    group.add_argument("--mask-blur", type=float, metavar="PIXELS", help="of the mask's rim; default 4")
    group.add_argument("--mask-invert", action="store_true", default=None, help="paint what is black")
    group.add_argument("--mask-soft", action="store_true", default=None, help="paint grey by half")
    group.add_argument(
        "--masked-content",
        choices=("fill", "original", "noise", "nothing"),
        help="what is there to begin with; default original",
    )
    group.add_argument(
        "--inpaint-area", choices=("whole", "masked"), help="draw the whole picture (default), or what is masked alone"
    )
    group.add_argument("--mask-padding", type=int, metavar="PIXELS", help="drawn around what is masked; default 32")
    group.add_argument(
        "--mask-weight", type=float, metavar="X", help="how far inpainting models do not see what is masked; default 1"
    )
    group.add_argument(
        "--outpaint", metavar="SIDE=PIXELS,…", help="add to the picture and paint, such as left=128,right=128"
    )


def _add_second(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--hires-scale", type=float, metavar="X", help="a second pass at X times the size")
    group.add_argument("--hires-size", metavar="WxH", help="the same, at this size; 1024x and x1024 keep proportions")
    group.add_argument(
        "--hires-upscaler", metavar="NAME", help='"Latent" (default), "Latent (bicubic)" …, Lanczos, Nearest'
    )
    group.add_argument("--hires-steps", type=int, metavar="N", help="default: as the first pass")
    group.add_argument("--hires-sampler", metavar="NAME", help="likewise")
    group.add_argument("--hires-schedule", metavar="NAME", help="likewise")
    group.add_argument("--hires-prompt", type=typed_text, metavar="TEXT", help="likewise")
    group.add_argument("--hires-negative-prompt", type=typed_text, metavar="TEXT", help="likewise")
    group.add_argument("--hires-cfg", dest="hires_guidance_scale", type=float, metavar="X", help="likewise")
    group.add_argument(
        "--refiner-switch", type=float, metavar="X", help="0 to 1, when --refiner takes over; default 0.8"
    )
    group.add_argument("--refiner-by", choices=("timestep", "step"), help="what that is a share of; default timestep")
    group.add_argument("--tiling", choices=("none", "x", "y", "both"), help="edges that fit together")


def read_picture_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that are written otherwise on the command line. Raises RequestError."""
    values: dict[str, Any] = {}
    if options.outpaint is not None:
        values["outpaint"] = _sides(options.outpaint)
    if options.hires_size is not None:
        values["hires_width"], values["hires_height"] = _size(options.hires_size)
    return values


def _sides(text: str) -> tuple[int, ...]:
    found: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        match = _SIDE.fullmatch(part)
        side = None if match is None else _OTHERWISE.get(match[1], match[1])
        if match is None or side is None or side in found:
            raise RequestError(
                f"--outpaint {text[:80]!r} is not understood; write it as left=128,right=128, with left, up, right, down"
            )
        found[side] = int(match[2])
    return tuple(found.get(side, 0) for side in SIDES)


def _size(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"(\d{0,6})[xX](\d{0,6})", text)
    if match is None or not (match[1] or match[2]):
        raise RequestError(f"--hires-size {text[:80]!r} is no size; write it as 1024x1536, 1024x or x1536")
    width, height = (int(side) if side else None for side in match.groups())
    return width, height
