"""What falls or hangs between the eye and the scene: fog, rain, snow, lightning, birds."""

from __future__ import annotations

import numpy as np

from .noise import Array, blocks, sample, texture
from .palette import linear, mix
from .stage import Stage


def paint_weather(stage: Stage) -> None:
    """Lay the weather over the finished scene."""
    scene = stage.scene
    if scene.kind in ("space", "abstract", "underwater"):
        return
    if scene.has("storm"):
        _lightning(stage)
    if scene.has("fog"):
        _fog(stage)
    if scene.has("rain", "storm") and "rain" not in scene.without:
        _rain(stage)
    if scene.has("snow"):
        _snow(stage)
    calm = (
        scene.time in ("day", "sunset", "sunrise")
        and not scene.has("storm", "rain", "snow", "fog")
        and scene.kind != "city"
    )
    if scene.has("birds") or (calm and "birds" not in scene.without and stage.rng("flock").uniform() < 0.3):
        _birds(stage)


def _fog(stage: Stage) -> None:
    """Drifting banks, thick at the horizon and thin overhead; near things stay dark in it."""
    canvas, rng = stage.canvas, stage.rng("fog")
    bank = texture(rng, 2.1, 3.0)
    air = mix(stage.palette.haze, stage.palette.horizon, 0.45)
    for part in blocks(canvas.height, canvas.width):
        y = canvas.y[part, None]
        drift = sample(bank, canvas.x[None, :] * np.float32(0.25) + 0 * y, y * np.float32(0.9) + 0 * canvas.x[None, :])
        around = np.exp(-(((y - np.float32(stage.horizon + 0.02)) / np.float32(0.26)) ** 2))
        near = np.clip(canvas.depth[part] / 30.0, 0.12, 1)
        alpha = np.clip(around * (np.float32(0.50) + np.float32(0.17) * drift), 0, 0.85) * near
        area = canvas.rgb[part]
        area += (air - area) * alpha[..., None]


def _streaks(stage: Stage, name: str, count: int, long_: float, slant: float) -> Array:
    """Coverage of falling streaks at full size: short lines, a pixel or so wide."""
    canvas, rng = stage.canvas, stage.rng(name)
    cover = np.zeros((canvas.height, canvas.width), np.float32)
    count = int(count * canvas.span)
    x, y = rng.uniform(-0.55, 0.55, count) * canvas.span, rng.uniform(-0.1, 1.0, count)
    size = long_ * rng.uniform(0.4, 1.3, count)
    strength = rng.uniform(0.1, 0.55, count)
    steps = max(4, int(long_ * canvas.height * 1.3))
    wide = max(1, round(canvas.height / 700))
    for step in range(steps):
        part = step / steps
        rows = np.floor((y + size * part) * canvas.height).astype(np.int64)
        base = np.floor(((x + slant * size * part) / canvas.span + 0.5) * canvas.width).astype(np.int64)
        for extra in range(wide):
            columns = base + extra
            keep = (rows >= 0) & (rows < canvas.height) & (columns >= 0) & (columns < canvas.width)
            weight = (strength * np.sin(np.pi * part)).astype(np.float32)[keep]
            np.maximum.at(cover, (rows[keep], columns[keep]), weight)
    return cover


def _rain(stage: Stage) -> None:
    canvas = stage.canvas
    slant = float(stage.rng("wind").uniform(-0.28, 0.28))
    cover = _streaks(stage, "rain far", 1500, 0.035, slant) * np.float32(0.55)
    np.maximum(cover, _streaks(stage, "rain near", 420, 0.085, slant) * np.float32(0.75), out=cover)
    tone = mix(stage.palette.horizon, linear("e8f0f8"), 0.45) * np.float32(0.35 + 0.65 * min(1.0, stage.dim * 2))
    for part in blocks(canvas.height, canvas.width):
        area = canvas.rgb[part]
        area += (stage.palette.haze * np.float32(0.75) - area) * np.float32(0.10)
        area += (tone - area) * (cover[part] * np.float32(0.62))[..., None]


def _snow(stage: Stage) -> None:
    canvas, rng = stage.canvas, stage.rng("snowflakes")
    tone = mix(stage.palette.horizon, linear("ffffff"), 0.7) * np.float32(0.45 + 0.55 * min(1.0, stage.dim * 2))
    for size, count, strength in ((0.0014, 900, 0.55), (0.0026, 380, 0.7), (0.0050, 90, 0.5)):
        number = int(count * canvas.span)
        x, y = rng.uniform(-0.5, 0.5, number) * canvas.span, rng.uniform(0, 1, number)
        light = tone * (strength * rng.uniform(0.4, 1.0, number))[:, None]
        canvas.splat(x, y, light.astype(np.float32), size)


def _lightning(stage: Stage) -> None:
    """One forked bolt and the clouds lit around it."""
    canvas, rng = stage.canvas, stage.rng("lightning")
    x = float(rng.uniform(-0.3, 0.3)) * canvas.span
    around = ((canvas.x[None, :] - np.float32(x)) / np.float32(0.25)) ** 2
    for part in blocks(canvas.height, canvas.width):
        glow = np.exp(-around - (canvas.y[part, None] / np.float32(0.6)) ** 2)
        canvas.rgb[part] += linear("b8c4ff") * (glow * np.float32(0.20))[..., None]
    trunk_y, trunk_x = _bolt(rng, x, 0.0, stage.horizon, 0.0)
    _draw_bolt(stage, trunk_y, trunk_x, 1.0)
    for _ in range(5):
        cut = int(rng.integers(40, len(trunk_y) - 60))
        end = min(stage.horizon, float(trunk_y[cut] + rng.uniform(0.08, 0.22)))
        _draw_bolt(
            stage, *_bolt(rng, float(trunk_x[cut]), float(trunk_y[cut]), end, float(rng.uniform(-0.25, 0.25))), 0.5
        )


def _bolt(rng: np.random.Generator, x: float, start: float, end: float, lean: float) -> tuple[Array, Array]:
    """The course of a bolt: heights and the place x at each."""
    y = np.linspace(start, end, 260)
    walk = lean * (y - start)
    for scale in (0.07, 0.03, 0.013):
        knots = max(3, int((end - start) / scale / 1.2))
        walk += np.interp(np.linspace(0, 1, 260), np.linspace(0, 1, knots), rng.normal(0, scale * 0.42, knots))
    return y, x + walk - walk[0]


def _draw_bolt(stage: Stage, y: Array, x: Array, strength: float) -> None:
    """A bright core and a glow around the course, row by row; slanting stretches are drawn as wide as they run."""
    canvas = stage.canvas
    rows = slice(canvas.row(float(y[0])), canvas.row(float(y[-1])))
    middle = np.interp(canvas.y[rows], y, x).astype(np.float32)[:, None]
    run = np.abs(np.interp(canvas.y[rows], y, np.gradient(x, y)).astype(np.float32))[:, None] / np.float32(
        canvas.height
    )
    thin = np.float32(max(0.0016 * strength, 0.7 / canvas.across)) + run * np.float32(0.5)
    for part in blocks(len(middle), canvas.width):
        away = np.abs(canvas.x[None, :] - middle[part])
        core = np.exp(-((away / thin[part]) ** 2)) * np.float32(1.6)
        halo = np.exp(-away / np.float32(0.010)) * np.float32(0.30)
        area = canvas.rgb[rows.start + part.start : rows.start + part.stop]
        area += linear("e8ecff") * ((core + halo) * np.float32(strength))[..., None]


def _birds(stage: Stage) -> None:
    """A flock: pairs of arcs before the sky."""
    canvas, rng = stage.canvas, stage.rng("birds")
    middle = rng.uniform(-0.25, 0.25) * canvas.span, stage.horizon * rng.uniform(0.3, 0.6)
    for _ in range(int(rng.integers(7, 14))):
        x, y = middle[0] + rng.normal(0, 0.12), middle[1] + rng.normal(0, 0.05)
        size, beat = rng.uniform(0.010, 0.022), rng.uniform(0.2, 0.75)
        place = canvas.box(x - size, y - size, x + size, y + size)
        dx, dy = (canvas.x[None, place[1]] - x) / size, (canvas.y[place[0], None] - y) / size
        wing = np.abs(dx)
        arc = -beat * np.sqrt(np.clip(wing, 0, 1)) * (1.25 - wing * 0.75) + 0.15
        thick = 0.10 * np.clip(1.05 - wing, 0, 1) + 0.03
        alpha = np.clip((thick - np.abs(dy - arc)) * size * canvas.height + 0.5, 0, 1) * (wing < 1)
        canvas.cover(place, stage.near("181818", 0.5), alpha.astype(np.float32), 15.0)
