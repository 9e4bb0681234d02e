"""How fast each deterministic sampler nears the exact solution: `python -m benchmarks.convergence [PICTURE]`.

The data are independent Gaussians of several widths, whose best denoiser and probability-flow ODE are known in closed
form. All samplers walk Karras' levels from 10 to 0.1, so that what is seen is the sampler and not its schedule; those
that can add noise do so with eta 0. Error: root mean square over the data's, against the exact solution, in float64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES, SamplerInfo
from avila_diffusion.sampling.samplers import SAMPLERS as FUNCTIONS
from avila_diffusion.sampling.samplers import Options, sample
from avila_diffusion.sampling.schedules import NoiseTable, ScheduleOptions, schedule_sigmas

from .drawing import FAINT, FINE, INK, SERIES

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "convergence.png"
SIGMA_MAX, SIGMA_MIN = 10.0, 0.1
STEPS = (3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MEAN = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(1, 4, 3, 4)
SPREAD = torch.logspace(math.log10(0.2), math.log10(2), 48, dtype=torch.float64).roll(17).reshape(1, 4, 3, 4)
ORDERS_FROM = 64
"""The measured order is the slope from that many calls on."""


@dataclass(frozen=True)
class Curve:
    """One sampler: (model calls, error) of each run."""

    info: SamplerInfo
    points: tuple[tuple[int, float], ...]

    def order(self) -> float:
        """The slope that the error falls with, by least squares over the runs of many calls that rounding spares."""
        late = [(math.log(calls), math.log(error)) for calls, error in self.points if calls >= ORDERS_FROM]
        late = [(x, y) for x, y in late if y > math.log(1e-11)]
        if len(late) < 2:
            return math.nan
        x_mean, y_mean = sum(x for x, _ in late) / len(late), sum(y for _, y in late) / len(late)
        return sum((x - x_mean) * (y_mean - y) for x, y in late) / sum((x - x_mean) * (x - x_mean) for x, _ in late)


def deterministic() -> list[SamplerInfo]:
    """The samplers that can follow the ODE over levels that are given: no noise, no guidance of their own."""
    return [
        info
        for info in SAMPLERS.values()
        if info.key in FUNCTIONS
        and not info.uncond
        and info.calls not in ("restart", "adaptive")
        and (info.uses_eta or not info.stochastic)
    ]


def denoise(call: Call) -> Denoised:
    """The posterior mean of the data."""
    return Denoised((SPREAD**2 * call.x + call.sigma**2 * MEAN) / (SPREAD**2 + call.sigma**2))


def measure(info: SamplerInfo, n: int) -> tuple[int, float]:
    """(model calls, error) of n steps."""
    table = NoiseTable.from_config(NoiseConfig())
    limits = ScheduleOptions(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    sigmas = schedule_sigmas(SCHEDULES["karras"], n + 1, table, limits)[:-1]
    noise = torch.randn(MEAN.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = MEAN + (SPREAD**2 + SIGMA_MAX**2).sqrt() * noise
    exact = MEAN + (SPREAD**2 + SIGMA_MIN**2).sqrt() * noise
    run = sample(info, x, sigmas, _no_noise, table=table, options=Options(eta=0.0 if info.uses_eta else None))
    calls, call = 0, next(run, None)
    while call is not None:
        calls += 1
        try:
            call = run.send(denoise(call))
        except StopIteration as end:
            got: Tensor = end.value
            call = None
    if info.text_start == "unit":  # it ends in the variance-preserving process
        got = got * math.hypot(1, SIGMA_MIN)
    return calls, ((got - exact) / exact.std()).square().mean().sqrt().item()


def _no_noise(sigma: float, sigma_next: float) -> Tensor:
    return torch.zeros_like(MEAN)


OTHERS = (205, 205, 205)
TILE_WIDTH, TILE_HEIGHT, COLUMNS = 190, 150, 5
LEFT, BOTTOM = 46, 40
CALLS, ERRORS = (3, 300), (-8, 0)
"""Ends of the axes: calls, and powers of ten of the error."""


def draw(curves: Sequence[Curve]) -> Image.Image:
    """A tile for each sampler, with the others faint behind it."""
    rows = -(-len(curves) // COLUMNS)
    size = (LEFT + COLUMNS * TILE_WIDTH + 10, rows * TILE_HEIGHT + BOTTOM)
    canvas = Image.new("RGB", (size[0] * FINE, size[1] * FINE), "white")
    pen = ImageDraw.Draw(canvas)
    font, title = ImageFont.load_default(size=11 * FINE), ImageFont.load_default(size=13 * FINE)
    for index, curve in enumerate(curves):
        left, top = LEFT + index % COLUMNS * TILE_WIDTH, index // COLUMNS * TILE_HEIGHT
        _draw_axes(pen, font, left, top, labels=(index % COLUMNS == 0, index + COLUMNS >= len(curves)))
        for other in curves:
            _draw_curve(pen, other, left, top, OTHERS, 1)
        colour = SERIES[index % len(SERIES)]
        _draw_curve(pen, curve, left, top, colour, 2)
        pen.text(((left + 6) * FINE, (top + 12) * FINE), curve.info.name, colour, title, anchor="lm")
        order = curve.order()
        words = "" if math.isnan(order) else f"order {order:.1f}"
        pen.text(((left + TILE_WIDTH - 16) * FINE, (top + 30) * FINE), words, INK, font, anchor="rm")
    middle = (LEFT + COLUMNS * TILE_WIDTH / 2) * FINE
    pen.text((middle, (size[1] - 10) * FINE), "error (upwards) against model calls", INK, font, anchor="mm")
    return canvas.resize((canvas.width // FINE * 2, canvas.height // FINE * 2), Image.Resampling.LANCZOS)


def _place(calls: float, error: float, left: float, top: float) -> tuple[float, float]:
    across = math.log(calls / CALLS[0]) / math.log(CALLS[1] / CALLS[0])
    up = (math.log10(error) - ERRORS[0]) / (ERRORS[1] - ERRORS[0])
    x, y = left + across * (TILE_WIDTH - 14), top + TILE_HEIGHT - 6 - up * (TILE_HEIGHT - 30)
    return x * FINE, y * FINE


def _draw_curve(
    pen: ImageDraw.ImageDraw, curve: Curve, left: float, top: float, colour: tuple[int, int, int], width: int
) -> None:
    """As far as it is within the axes."""
    low = 10.0 ** ERRORS[0]
    inside = [(calls, min(error, 1.0)) for calls, error in curve.points if calls <= CALLS[1] and error >= low]
    points = [_place(calls, error, left, top) for calls, error in inside]
    pen.line(points, colour, width * FINE, joint="curve")


def _draw_axes(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: float,
    top: float,
    labels: tuple[bool, bool],
) -> None:
    """Lines at powers of ten; words at the left and below where no other tile is."""
    for power in range(ERRORS[0], ERRORS[1] + 1, 2):
        ends = [_place(calls, 10.0**power, left, top) for calls in CALLS]
        pen.line(ends, FAINT, FINE)
        if labels[0]:
            pen.text((ends[0][0] - 4 * FINE, ends[0][1]), f"1e{power}" if power else "1", INK, font, anchor="rm")
    for calls in (10, 100):
        low, high = (_place(calls, 10.0**power, left, top) for power in ERRORS)
        pen.line([low, high], FAINT, FINE)
        if labels[1]:
            pen.text((low[0], low[1] + 10 * FINE), str(calls), INK, font, anchor="mm")
    corner = ((CALLS[0], ERRORS[1]), (CALLS[0], ERRORS[0]), (CALLS[1], ERRORS[0]))
    pen.line([_place(calls, 10.0**power, left, top) for calls, power in corner], INK, FINE)


def main() -> None:
    curves = [Curve(info, tuple(measure(info, n) for n in STEPS)) for info in deterministic()]
    print("sampler, order by its row and as measured, error at about 32 calls")
    for curve in curves:
        near = min(curve.points, key=lambda point: abs(math.log(point[0] / 32)))
        print(
            f"{curve.info.name:<20} {curve.info.order or '-':<3} {curve.order():.2f}  {near[1]:.1e} ({near[0]} calls)"
        )
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(curves).quantize(128).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
