"""A prompt drawn: understand it, set the stage, paint, grade, and put it in its style."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .canvas import Canvas
from .grade import add_bloom, grade, quantise
from .scenes import DRAWERS
from .stage import set_stage
from .styles import STYLED
from .understand import Scene, describe
from .weather import paint_weather

CLEAN = frozenset({"pixel art", "poster"})
"""Styles whose flat colours must stay flat: no dither."""


def draw(prompt: str, negative_prompt: str, width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """The picture of a prompt, (height, width, 3), 0 to 255. The same arguments give the same bytes.

    width, height: pixels, from 1. seed: 0 to 2**64 - 1. Raises RequestError where one is out of range.
    """
    return draw_scene(describe(prompt, negative_prompt, seed), width, height)


def draw_scene(scene: Scene, width: int, height: int) -> NDArray[np.uint8]:
    """The picture of a scene that `understand.describe` made, or that was put together by hand."""
    for name, side in (("width", width), ("height", height)):
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise RequestError(f"{name} is {side!r}; a picture needs a whole number of pixels from 1")
    canvas = Canvas(width, height)
    stage = set_stage(canvas, scene)
    DRAWERS[scene.kind](stage)
    paint_weather(stage)
    rays = 0.5 if stage.low_sun and scene.kind not in ("space", "abstract", "underwater") else 0.0
    add_bloom(canvas, 0.6, stage.sun if rays else None, rays, stage.horizon)
    picture = grade(canvas)
    style = STYLED.get(scene.style)
    if style is not None:
        picture = style(picture, canvas, scene.seed)
    return quantise(picture, scene.seed, dither=scene.style not in CLEAN)
