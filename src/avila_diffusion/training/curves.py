"""The loss of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import numpy.typing
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..images import Image

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 30, 50
INK, FAINT, LINE = (40, 40, 40), (225, 225, 225), (31, 119, 180)


def write_curve(path: Path, history: Sequence[Mapping[str, float]], key: str = "loss") -> None:
    """Draw `key` of the rows against their step, each value faint and a running mean over it, on a logarithmic axis.

    Values that are not above 0 have no place on it and are left out; with fewer than two nothing is written.
    """
    rows = [(row["step"], row[key]) for row in history if row.get(key, 0) > 0]
    if len(rows) < 2:
        return
    steps, values = (numpy.array(column, dtype=float) for column in zip(*rows, strict=True))
    canvas = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = PIL.ImageDraw.Draw(canvas), PIL.ImageFont.load_default(size=13)
    low, high = math.log(values.min()), math.log(values.max() * 1.02)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - steps[0]) / max(steps[-1] - steps[0], 1)
        up = (math.log(value) - low) / max(high - low, 1e-9)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for share in (0, 0.25, 0.5, 0.75, 1):
        value = math.exp(low + share * (high - low))
        y = place(steps[0], value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], FAINT)
        draw.text((LEFT - 8, y), f"{value:.3g}", INK, font, anchor="rm")
        step = steps[0] + share * (steps[-1] - steps[0])
        draw.text((place(step, values[0])[0], HEIGHT - BOTTOM + 14), f"{step:,.0f}", INK, font, anchor="mm")
    draw.text((WIDTH / 2, HEIGHT - 14), "step", INK, font, anchor="mm")
    draw.text((WIDTH / 2, TOP / 2), key, INK, font, anchor="mm")
    draw.line([place(*row) for row in rows], (190, 210, 230))
    draw.line([place(s, v) for s, v in zip(steps, running_mean(values), strict=True)], LINE, 2)
    Image(numpy.array(canvas)).save_png(path)


def running_mean(values: numpy.typing.NDArray[numpy.float64]) -> numpy.typing.NDArray[numpy.float64]:
    """Over a twentieth of the values on either side, over fewer at the ends."""
    reach = len(values) // 20
    sums = numpy.concatenate([[0.0], values.cumsum()])
    places = numpy.arange(len(values))
    first, beyond = numpy.maximum(places - reach, 0), numpy.minimum(places + reach + 1, len(values))
    means: numpy.typing.NDArray[numpy.float64] = (sums[beyond] - sums[first]) / (beyond - first)
    return means
