"""Contact sheets with captions, and line plots: Pillow alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

INK, FAINT = (40, 40, 40), (225, 225, 225)
SERIES = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (150, 60, 150))
FINE = 3
"""Plots are drawn that many times larger and reduced, which smooths the lines."""
WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 50, 46


def draw_sheet(
    pictures: npt.NDArray[np.uint8], captions: Sequence[str], columns: int = 8, gap: int = 6, lines: int = 3
) -> Image.Image:
    """Pictures (count, h, w, 3) in rows, each with its caption below, in at most so many lines."""
    count, height, width, _ = pictures.shape
    font = ImageFont.load_default(size=11)
    row, column = height + 14 * lines + gap, width + gap
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * column + gap, rows * row + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = gap + number % columns * column, gap + number // columns * row
        sheet.paste(Image.fromarray(picture), (left, top))
        wrapped = textwrap.wrap(caption, max(width // 6, 8), max_lines=lines, placeholder=" …")
        draw.multiline_text((left, top + height + 2), "\n".join(wrapped), fill=INK, font=font, spacing=2)
    return sheet


@dataclass(frozen=True)
class Panel:
    """One plot: shares of 0 to 1 against values, which stand evenly spaced, whatever is between them."""

    title: str
    axis: str
    values: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def draw_plot(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side."""
    plot = Image.new("RGB", (len(panels) * WIDTH * FINE, HEIGHT * FINE), "white")
    for number, panel in enumerate(panels):
        _draw_panel(ImageDraw.Draw(plot), panel, number * WIDTH)
    return plot.resize((plot.width // FINE * 2, plot.height // FINE * 2), Image.Resampling.LANCZOS)


def _draw_panel(draw: ImageDraw.ImageDraw, panel: Panel, offset: int) -> None:
    font, title = ImageFont.load_default(size=11 * FINE), ImageFont.load_default(size=13 * FINE)
    left, right, top, bottom = offset + LEFT, offset + WIDTH - RIGHT, TOP, HEIGHT - BOTTOM

    def text(x: float, y: float, words: str, anchor: str, colour: tuple[int, int, int] = INK) -> None:
        draw.text((x * FINE, y * FINE), words, fill=colour, font=title if words == panel.title else font, anchor=anchor)

    def line(points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float) -> None:
        draw.line([(x * FINE, y * FINE) for x, y in points], colour, round(width * FINE), joint="curve")

    def place(index: int, share: float) -> tuple[float, float]:
        across = (index + 0.5) / len(panel.values)
        return left + across * (right - left), bottom - share * (bottom - top)

    text((left + right) / 2, 14, panel.title, "mm")
    text((left + right) / 2, HEIGHT - 12, panel.axis, "mm")
    for tick in range(0, 101, 20):
        height = place(0, tick / 100)[1]
        line([(left, height), (right, height)], FAINT, 1)
        text(left - 6, height, f"{tick} %", "rm")
    for index, value in enumerate(panel.values):
        text(place(index, 0)[0], bottom + 12, f"{value:g}", "mm")
    line([(left, top), (left, bottom), (right, bottom)], INK, 1)
    for number, (name, shares) in enumerate(panel.lines.items()):
        colour = SERIES[number % len(SERIES)]
        points = [place(index, share) for index, share in enumerate(shares)]
        line(points, colour, 2)
        for x, y in points:
            draw.ellipse([c * FINE for c in (x - 3, y - 3, x + 3, y + 3)], fill=colour)
        text(left + (number + 0.5) / len(panel.lines) * (right - left), 34, name, "mm", colour)
