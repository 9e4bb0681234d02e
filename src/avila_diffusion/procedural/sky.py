"""The sky: its gradient, the sun and its glow, clouds on a plane overhead and heaped at the horizon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .canvas import Canvas
from .noise import Array, blocks, ramp, sample, stream, texture
from .palette import Palette, linear


@dataclass(frozen=True)
class Sky:
    """What lights the scene, in canvas units.

    horizon: y of the horizon. sun: (x, y) of the sun or the moon. disc: its radius, 0 to leave it out.
    glow: strength of the air's glow around it. kind: "plain", or "retro" for a striped disc.
    """

    palette: Palette
    horizon: float
    sun: tuple[float, float]
    disc: float
    glow: float
    kind: str
    seed: int


def paint_sky(canvas: Canvas, sky: Sky) -> None:
    """Fill the whole canvas with the clear sky, the glow and the sun's disc."""
    palette = sky.palette
    ladder = np.stack([palette.horizon, palette.low, palette.high, palette.zenith])
    steps = np.linspace(0, 1, 256)
    stops = np.stack([np.interp(steps, [0.0, 0.24, 0.6, 1.0], ladder[:, c]) for c in range(3)], axis=1)
    lookup = gaussian_filter1d(stops, 14, axis=0, mode="nearest")
    elevation = np.clip((sky.horizon - canvas.y) / max(0.35, sky.horizon), 0, 1)
    rows = np.stack([np.interp(elevation, steps, lookup[:, c]) for c in range(3)], axis=1).astype(np.float32)
    sun_x, sun_y = np.float32(sky.sun[0]), np.float32(sky.sun[1])
    for part in blocks(canvas.height, canvas.width):
        dy = canvas.y[part, None] - sun_y
        dx = canvas.x[None, :] - sun_x
        radius = np.sqrt(dx * dx + dy * dy)
        area = canvas.rgb[part]
        area[:] = rows[part, None, :]
        low = np.exp(-((canvas.y[part, None] - np.float32(sky.horizon)) ** 2) * 22 - dx * dx * 1.6)
        wide = np.float32(sky.glow) * (0.42 * np.exp(-radius * 4.2) + 0.30 * low)
        area += (palette.glow - area * np.float32(0.35)) * wide[..., None]
        near = np.float32(sky.glow) * (0.55 * np.exp(-radius * 13) + 0.9 * np.exp(-radius * 34))
        area += palette.sun * near[..., None]
        if sky.disc > 0 and sky.kind == "retro":
            below = dy / np.float32(sky.disc)
            slats = ramp(
                -0.25, 0.25, np.sin(below * 17) + np.float32(1.1) - np.float32(1.15) * np.clip(below + 0.2, 0, 1.2)
            )
            edge = ramp(1.0, -1.0, (radius - np.float32(sky.disc)) * np.float32(canvas.height * 0.7)) * slats
            tone = (
                palette.sun * np.float32(1.05)
                + (linear("ff2e88") - palette.sun) * np.clip(below * 0.5 + 0.5, 0, 1)[..., None]
            )
            area += (tone * np.float32(1.15) - area) * edge[..., None]
        elif sky.disc > 0:
            disc = ramp(1.0, -1.0, (radius - np.float32(sky.disc)) * np.float32(canvas.height * 0.7))
            area += (palette.sun * np.float32(5.0)) * (disc * np.float32(min(1.0, sky.glow + 0.2)))[..., None]


def _plane(canvas: Canvas, part: slice, horizon: float, scale: float, stretch: float) -> tuple[Array, Array]:
    """Where the view through each pixel meets the cloud plane, in texture tiles."""
    rise = np.maximum(np.float32(horizon) - canvas.y[part, None], 0) + np.float32(0.1)
    v = np.float32(scale) / rise
    return canvas.x[None, :] * v * np.float32(stretch), v


FORMS: dict[str, tuple[float, float, float, float]] = {
    # form: (scale, stretch across, warp, softness of the edge)
    "streaks": (0.26, 0.22, 0.050, 1.3),
    "banks": (0.20, 0.42, 0.040, 1.0),
    "fleece": (0.34, 0.75, 0.018, 1.0),
    "puffs": (0.24, 0.62, 0.022, 0.6),
    "wisps": (0.20, 0.32, 0.110, 2.2),
}


def paint_clouds(canvas: Canvas, sky: Sky, form: str, cover: float, shift: float = 0.0) -> None:
    """A layer of clouds on a plane overhead, lit from the sun's side with thin edges brighter (the silver lining)."""
    scale, stretch, warp, soft = FORMS[form]
    rng = stream(sky.seed, f"clouds {form} {shift}")
    body, detail = texture(rng, 2.1, 4.0), texture(rng, 1.7, 5.0)
    drift = np.float32(rng.uniform(0, 1) + shift)
    bottom = canvas.row(sky.horizon + 0.01)
    threshold = np.float32(1.25 - 2.3 * cover)
    sun_x, sun_y = np.float32(sky.sun[0]), np.float32(min(sky.sun[1], sky.horizon - 0.02))
    sun_v = np.float32(scale) / (np.float32(sky.horizon) - sun_y + np.float32(0.1))
    sun_u = sun_x * sun_v * np.float32(stretch)
    for part in blocks(bottom, canvas.width):
        u, v = _plane(canvas, part, sky.horizon, scale, stretch)
        v = np.broadcast_to(v, u.shape)
        bend = sample(body, u * 0.5 + drift, v * 0.5)
        du, dv = u + np.float32(warp) * bend, v - np.float32(warp * 0.6) * bend
        density = sample(body, du + drift, dv) + np.float32(0.34) * sample(detail, du * 2.3, dv * 2.3)
        toward_u, toward_v = sun_u - u, sun_v - v
        length = np.sqrt(toward_u * toward_u + toward_v * toward_v) + np.float32(1e-3)
        step = np.float32(0.016) / length
        ahead = sample(body, du + drift + toward_u * step, dv + toward_v * step)
        thick = np.maximum(density - threshold, 0)
        alpha = 1 - np.exp(-thick * np.float32(1.9 / soft))
        lit = np.exp(-np.maximum(0.6 * ahead + 0.4 * density - threshold, 0) * np.float32(1.5))
        lit += np.float32(0.30) * np.clip(density - ahead, -0.6, 0.8)
        dx, dy = canvas.x[None, :] - sun_x, canvas.y[part, None] - sun_y
        near = np.exp(-np.sqrt(dx * dx + dy * dy * 1.6) * 3.2)
        _lay(canvas, part, sky, alpha, np.clip(lit, 0, 1.25), near)


def _lay(canvas: Canvas, part: slice, sky: Sky, alpha: Array, lit: Array, near: Array) -> None:
    """Colour a strip of cloud and lay it over the sky; clouds thin out into the haze at the horizon."""
    palette = sky.palette
    rise = np.clip((np.float32(sky.horizon) - canvas.y[part, None]) * np.float32(9.0), 0, 1)
    colour = palette.cloud_dark + (palette.cloud_lit - palette.cloud_dark) * lit[..., None]
    silver = (near * lit * np.float32(0.9 * min(sky.glow, 1.2)) * (1.15 - alpha))[..., None]
    colour += silver * (palette.glow * np.float32(0.8) + palette.sun * np.float32(0.7))
    alpha = alpha * (np.float32(0.25) + np.float32(0.75) * rise)
    area = canvas.rgb[part]
    area += (colour - area) * (alpha * np.float32(0.97))[..., None]


def paint_cumulus(canvas: Canvas, sky: Sky, cover: float) -> None:
    """Heaped clouds standing above the horizon: billows with round lit tops and flat shaded feet."""
    rng = stream(sky.seed, "cumulus")
    body, billow = texture(rng, 2.4, 3.0), np.abs(texture(rng, 2.0, 6.0))
    fine = np.abs(texture(rng, 1.7, 8.0))
    bottom = canvas.row(sky.horizon)
    side = np.float32(0.010 if sky.sun[0] > 0 else -0.010)
    for tier, (foot, size, tall) in enumerate(((0.05, 0.62, 0.22), (0.22, 0.40, 0.34))):
        offset = np.float32(rng.uniform(0, 1))
        base, high = np.float32(sky.horizon * (1 - foot)), np.float32(tall * sky.horizon / 0.6)
        for part in blocks(bottom, canvas.width):
            u = canvas.x[None, :] * np.float32(size) + offset
            climb = (base - canvas.y[part, None]) / high
            u, v = np.broadcast_arrays(u, canvas.y[part, None] * np.float32(size * 1.25))
            mass = sample(body, u * 0.5, v * 0.16 + np.float32(0.37 * tier))
            puff = sample(billow, u * 0.75, v * 0.75)
            curl = sample(fine, u * 1.7, v * 1.7)
            ahead = sample(billow, u * 0.75 + side, v * 0.75 - np.float32(0.016))
            lumps = np.float32(0.42) * puff + np.float32(0.14) * curl
            crown = mass * np.float32(0.55) + np.float32(cover * 1.7 - 0.85) - lumps
            density = crown - np.maximum(climb, 0) * np.float32(0.95) + np.float32(0.30)
            alpha = ramp(0.0, 0.16, density) * ramp(-0.10, 0.14, climb - np.float32(0.10) * (puff - 0.7))
            lit = (
                np.float32(0.52) + np.float32(0.45) * np.clip(climb * 1.3, -0.5, 1) + np.float32(0.55) * (ahead - puff)
            )
            lit += np.float32(0.30) * ramp(0.55, 0.05, density) - np.float32(0.22) * (curl - 0.6)
            dx, dy = canvas.x[None, :] - np.float32(sky.sun[0]), canvas.y[part, None] - np.float32(sky.sun[1])
            near = np.exp(-np.sqrt(dx * dx + dy * dy) * 3.2) * np.float32(0.5)
            _lay(canvas, part, sky, alpha * np.float32(0.80 + 0.18 * tier), np.clip(lit, 0.05, 1.1), near)
