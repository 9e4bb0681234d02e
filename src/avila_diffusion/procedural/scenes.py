"""The scenes themselves: in which order the parts go on the canvas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .city import City, paint_city
from .ground import bloom_field, canyon, dunes, hills, isles, paint_flowers, paint_hills, paint_mesas
from .night import paint_nebula, paint_stars
from .noise import Array, wiggle
from .palette import linear, mix, toward
from .stage import FOCAL, Stage, paint_heaven, paint_mountains
from .trees import Grove, Tints, plant, tree_line
from .water import Water, paint_beach, paint_water


def _water(stage: Stage, edge: float, waves: float, end: float = 1.0) -> None:
    scene, palette = stage.scene, stage.palette
    colour = palette.water * np.float32(0.9)
    wished = scene.tint("water")
    if wished is not None:
        colour = toward(colour * np.float32(1.5), wished, 1.0)
    if scene.season == "winter" and scene.kind in ("lake", "river"):
        waves, colour = waves * 0.4, mix(colour, palette.haze, 0.35)
    mirror = {"day": 0.42, "night": 0.55}.get(scene.time, 0.62) * (0.6 if wished else 1.0)
    glitter = {"day": 0.25, "sunset": 1.5, "sunrise": 1.2, "dusk": 0.15, "night": 0.9 if stage.moonlit else 0.0}[
        scene.time
    ]
    if scene.has("storm", "rain", "fog") or "sun" in scene.without:
        glitter *= 0.15
        waves = min(1.0, waves * 1.4)
    glint = palette.glow * np.float32(0.5) + palette.sun * np.float32(0.6)
    paint_water(
        stage.canvas, Water(edge, stage.horizon, waves, colour, mirror, (stage.sun[0], glitter), glint, end), scene.seed
    )


def _frame(stage: Stage, kind: str, size: float, sides: tuple[float, ...] = (-1, 1), foot: float = 1.03) -> None:
    """Tall dark trees in the near corners."""
    rng, half = stage.rng("frame"), stage.canvas.span / 2
    winter = stage.scene.season == "winter"
    tints = Tints(
        stage.near("2c3a3a" if winter else "24301e", 0.55),
        stage.near("8a98a4" if winter else "4c6a2c"),
        stage.palette.haze,
    )
    for side in sides:
        count = int(rng.integers(2, 5))
        for number in range(count):
            x = side * (half - 0.02 - abs(float(rng.normal(0, 0.07))) - 0.045 * number)
            plant(
                stage.canvas,
                kind,
                rng,
                x,
                foot + float(rng.uniform(-0.02, 0.05)),
                size * float(rng.uniform(0.55, 1.1)) * (1 - 0.12 * number),
                tints,
                1.5,
            )


def _shore(stage: Stage, at: float, kind: str) -> None:
    """A near bank with grass and trees, darker than what lies behind it."""
    rng, canvas = stage.rng("shore"), stage.canvas
    side = float(rng.choice([-1, 1]))
    tilt = float(rng.uniform(0.04, 0.10))
    foot = (
        np.float32(at)
        - np.float32(tilt * side) * canvas.x / np.float32(canvas.span) * 2
        + wiggle(rng, canvas.x, 3, 5) * np.float32(0.012)
    )
    code = "5c6870" if stage.scene.season == "winter" else "222c1a"
    tints = Tints(stage.near(code, 0.6), stage.near("4c5c30", 0.8), stage.palette.haze, 0.02)
    size = 0.24 if kind == "conifer" else 0.3
    top = canvas.row(float(foot.min()) - 0.03)
    blades = foot - np.abs(wiggle(rng, canvas.x, 160, 2)) * np.float32(0.012)
    alpha = np.clip((canvas.y[top:, None] - blades[None, :]) * np.float32(canvas.height) + 0.5, 0, 1)
    fall = np.clip(1 - (canvas.y[top:, None] - blades[None, :]) * np.float32(4), 0.25, 1)[..., None]
    canvas.cover((slice(top, None), slice(None)), np.asarray(tints.dark * fall, np.float32), alpha, 1.5)
    if "forest" in stage.scene.without:
        return
    for number in range(int(rng.integers(4, 8))):
        x = side * (canvas.span / 2 - 0.02 - 0.07 * number - float(rng.uniform(0, 0.05)))
        column = int(min(canvas.width - 1, max(0, canvas.column(x))))
        plant(
            canvas,
            kind,
            rng,
            x,
            float(foot[column]) + 0.012,
            size * float(rng.uniform(0.6, 1.25)) * (1 - 0.06 * number),
            tints,
            1.5,
        )


def draw_mountains(stage: Stage) -> None:
    paint_heaven(stage)
    paint_mountains(stage, 4.0, 1.0, 1.0)
    if "forest" not in stage.scene.without and stage.rng("framing").uniform() < 0.75:
        _frame(stage, "conifer", 0.42)


def draw_lake(stage: Stage) -> None:
    scene = stage.scene
    edge = stage.horizon + 0.035
    paint_heaven(stage)
    if scene.has("hills") and not scene.has("mountains"):
        paint_hills(stage, hills(stage.rng("land"), 0.6), 30.0, edge + 0.012)
    elif "mountains" not in scene.without:
        paint_mountains(stage, 22.0, edge + 0.012, 0.8, 0.7)
    if "forest" not in scene.without:
        rng = stage.rng("far woods")
        foot = np.full(stage.canvas.width, edge, np.float32)
        tints = Tints(
            stage.near(stage.leaf("2c4020"), 0.8),
            stage.near(stage.leaf("44602c")),
            stage.palette.haze,
            0.22 if not scene.has("fog") else 0.7,
        )
        tree_line(
            stage.canvas,
            "conifer",
            rng,
            foot - wiggle(rng, stage.canvas.x, 2, 4) * np.float32(0.006) - np.float32(0.004),
            0.045,
            (tints,),
            20.0,
            0.30,
        )
    _water(stage, edge, 0.16 if scene.kind == "lake" else 0.3)
    if stage.rng("framing").uniform() < 0.7:
        _shore(stage, 0.95, "conifer")


def draw_sea(stage: Stage) -> None:
    scene = stage.scene
    paint_heaven(stage)
    if scene.has("mountains", "hills", "island"):
        _islands(stage)
    _water(stage, stage.horizon, 0.55)
    _boat(stage)


def _islands(stage: Stage) -> None:
    paint_hills(
        stage,
        isles(stage.rng("land"), stage.canvas.span, 1.9 if stage.scene.has("mountains") else 1.0),
        40.0,
        stage.horizon + 0.014,
        0.3,
    )


def draw_island(stage: Stage) -> None:
    paint_heaven(stage)
    _islands(stage)
    _water(stage, stage.horizon + 0.004, 0.35)
    _boat(stage)


def _boat(stage: Stage) -> None:
    """A sailing boat, where one is asked for, and now and then on a calm sea."""
    canvas, scene, rng = stage.canvas, stage.scene, stage.rng("boat")
    chance = rng.uniform() < 0.35 and not scene.has("storm") and scene.kind == "sea" and "boat" not in scene.without
    if not (scene.has("boat") or chance):
        return
    x, foot, size = float(rng.uniform(-0.3, 0.3)) * canvas.span, stage.horizon + 0.075, 0.15
    place = canvas.box(x - size, foot - size * 1.3, x + size, foot + size * 1.1)
    dx, dy = (canvas.x[None, place[1]] - x) / size, (canvas.y[place[0], None] - foot) / size
    soft = np.float32(size * canvas.height)
    for flip, strength in ((1.0, 0.95), (-0.75, 0.35)):
        up = -dy * np.float32(flip)
        wave = np.float32(0.0 if flip > 0 else 0.03) * np.sin(dy * 40)
        hull = np.minimum(np.minimum(up - 0.0, 0.13 - up), 0.34 + up * 0.9 - np.abs(dx + wave))
        main = np.minimum(np.minimum(up - 0.17, 1.12 - up * 1.0 - (dx + wave) * 2.6), dx + wave - 0.015)
        jib = np.minimum(np.minimum(up - 0.2, 0.95 - up + (dx + wave) * 2.6), -(dx + wave) - 0.02)
        for shape, code in ((hull, "2a1a14"), (main, "f4ead8"), (jib, "e4d8c4")):
            light = stage.near(code, 1.8 if code != "2a1a14" else 0.8) + stage.palette.glow * np.float32(
                0.1 if code != "2a1a14" else 0
            )
            canvas.cover(
                place, np.asarray(light, np.float32), np.clip(shape * soft + 0.5, 0, 1) * np.float32(strength), 10.0
            )


def _palms(stage: Stage) -> None:
    rng, half = stage.rng("palms"), stage.canvas.span / 2
    side = float(rng.choice([-1, 1]))
    tints = Tints(stage.near("1e3018", 0.7), stage.near("406028"), stage.palette.haze)
    for number in range(int(rng.integers(2, 4))):
        plant(
            stage.canvas,
            "palm",
            rng,
            side * (half - 0.10 - 0.15 * number),
            1.04,
            float(rng.uniform(0.6, 0.85)) * (1 - 0.15 * number),
            tints,
            1.0,
        )


def draw_beach(stage: Stage) -> None:
    scene = stage.scene
    paint_heaven(stage)
    if scene.has("island", "mountains", "hills") or stage.rng("far").uniform() < 0.5:
        _islands(stage)
    _water(stage, stage.horizon + 0.003, 0.45, 0.97)
    _boat(stage)
    bright = {"day": 0.92, "sunset": 0.55, "sunrise": 0.7, "dusk": 0.28, "night": 0.2}[scene.time]
    light = stage.palette.shade * np.float32(0.4) + stage.palette.light * np.float32(0.75)
    sand = linear("f2e0bc") * light
    paint_beach(
        stage.canvas,
        float(stage.rng("strand").uniform(0.78, 0.86)),
        np.asarray(sand, np.float32),
        np.asarray(light * np.float32(bright * 1.15), np.float32),
        scene.seed,
        bright,
    )
    if "palms" not in scene.without and (scene.has("palms") or stage.rng("framing").uniform() < 0.6):
        _palms(stage)


def draw_forest(stage: Stage) -> None:
    """Rows of trees, each paler and bluer with distance, a mist between them."""
    scene, palette, canvas = stage.scene, stage.palette, stage.canvas
    paint_heaven(stage)
    if scene.has("mountains"):
        paint_mountains(stage, 26.0, 1.0, 0.9, 0.8)
    rng = stage.rng("forest")
    leafy = scene.season in ("autumn", "spring") or rng.uniform() < 0.25
    kind = "conifer" if scene.season == "winter" or not leafy else "leafy"
    grove = Grove(rng, False) if kind == "leafy" else None
    rows = 6
    for number in range(rows):
        part = number / (rows - 1)
        base = stage.horizon - 0.10 + 0.43 * part**1.25
        foot = np.float32(base) + wiggle(rng, canvas.x, 1.6, 5) * np.float32(0.035 * (1.1 - 0.6 * part))
        fade = (0.90 - 0.86 * part) if scene.has("fog") or stage.low_sun else (0.78 - 0.76 * part)
        air = mix(palette.haze, palette.horizon, 0.55 * (1 - part))
        dark = stage.near(
            {"autumn": "4a2814", "spring": "4a4434", "winter": "38464c"}.get(scene.season, "1e3020"), 0.75
        )
        leaves = [stage.near(code, 1.5) for code in _leaf_codes(stage)]
        tall = (0.16 + 0.55 * part**1.4) * (0.7 if kind == "leafy" else 1.0)
        tree_line(
            canvas,
            kind,
            rng,
            foot.astype(np.float32),
            tall,
            tuple(Tints(dark, lit, air, max(0.0, fade)) for lit in leaves),
            40 * (1.02 - part),
            0.30 if kind == "conifer" else 0.5,
            grove,
        )
        if number < rows - 2:
            _mist(stage, base + 0.02, 0.10 + 0.05 * part, (0.55 if scene.has("fog") else 0.34) * (1 - part * 0.6))


def _leaf_codes(stage: Stage) -> tuple[str, ...]:
    """Colours of the crowns of a wood."""
    if stage.scene.tint("foliage") is not None:
        return (stage.leaf("4c7038"),)
    return {
        "autumn": ("d8681c", "c83c1c", "e8a828", "b8541c"),
        "spring": ("f0b0c4", "f4c8d4", "a8c050", "e898b0"),
        "winter": ("d0d8e0",),
    }.get(stage.scene.season, ("4c7038", "587c34", "40683c"))


def _mist(stage: Stage, y: float, deep: float, strength: float) -> None:
    """A soft bank of mist around a height."""
    canvas = stage.canvas
    profile = np.exp(-(((canvas.y - np.float32(y)) / np.float32(deep)) ** 2)) * np.float32(strength)
    air = mix(stage.palette.haze, stage.palette.horizon, 0.55)
    waver = 1 + np.float32(0.35) * wiggle(stage.rng(f"mist {y:.3f}"), canvas.x, 2.5, 4)
    rows = profile > 0.004
    if rows.any():
        first, last = int(np.argmax(rows)), int(len(rows) - np.argmax(rows[::-1]))
        canvas.cover((slice(first, last), slice(None)), air, np.clip(profile[first:last, None] * waver[None, :], 0, 1))


def draw_meadow(stage: Stage) -> None:
    scene = stage.scene
    paint_heaven(stage)
    if scene.has("mountains"):
        paint_mountains(stage, 40.0, 1.0, 0.85, 1.6)
    height = hills(stage.rng("land"), 0.55 if scene.has("mountains") else 1.0)
    paint_hills(stage, height, 1.6, 1.0, 1.6)
    rng = stage.rng("lone trees")
    if "forest" not in scene.without and rng.uniform() < 0.8:
        tints = Tints(
            stage.near(stage.leaf("28401c"), 0.55), stage.near(stage.leaf("64883a"), 1.35), stage.palette.haze, 0.06
        )
        x, z = float(rng.uniform(-0.30, 0.30)) * stage.canvas.span, float(rng.uniform(9, 14))
        h = float(
            height(
                np.array([[x * z / FOCAL]], np.float32), np.array([[z]], np.float32), np.array([[0.05]], np.float32)
            )[0, 0]
        )
        plant(
            stage.canvas,
            "leafy" if scene.season != "winter" else "bare",
            rng,
            x,
            stage.horizon - FOCAL * (h - 1.6) / z + 0.008,
            0.26,
            tints,
            z,
        )
    by_chance = scene.season == "spring" or (scene.season == "summer" and rng.uniform() < 0.6)
    if scene.has("flowers") or (by_chance and "flowers" not in scene.without):
        paint_flowers(stage, height, bloom_field(stage), 1.6)


def draw_hills(stage: Stage) -> None:
    draw_meadow(stage)


def draw_desert(stage: Stage) -> None:
    paint_heaven(stage)
    if stage.scene.has("mountains"):
        paint_mountains(stage, 60.0, 1.0, 0.7, 2.0, woods=False)
    paint_hills(stage, dunes(stage.rng("land")), 2.2, 1.0, 2.4, sand=True)


def draw_canyon(stage: Stage) -> None:
    paint_heaven(stage)
    paint_mesas(stage, canyon(stage.rng("land")))


def draw_city(stage: Stage) -> None:
    scene, palette, rng = stage.scene, stage.palette, stage.rng("city")
    paint_heaven(stage)
    if scene.has("mountains"):
        paint_mountains(stage, 40.0, stage.horizon + 0.012, 0.8, 0.8, woods=False)
    lit = {"day": 0.0, "sunset": 0.16, "sunrise": 0.10, "dusk": 0.30, "night": 0.40}[scene.time]
    city = City(
        palette,
        stage.horizon,
        lit,
        scene.style == "neon" or (stage.night and scene.has("rain")),
        float(rng.uniform(0.46, 0.60)),
        stage.sun[0],
        float(rng.uniform(-0.16, 0.16)),
        0.42 if stage.low_sun else 1.0,
    )
    _glow_of_the_city(stage, lit)
    paint_city(stage.canvas, city, rng)
    _water(stage, stage.horizon, 0.34 if not scene.has("rain") else 0.22)


def _glow_of_the_city(stage: Stage, lit: float) -> None:
    if lit < 0.3:
        return
    canvas = stage.canvas
    dome = np.exp(-np.maximum(stage.horizon - canvas.y[:, None], 0) * 5.5) * np.exp(-((canvas.x[None, :] * 0.9) ** 2))
    tone = mix(linear("ff9a50"), stage.palette.glow, 0.5)
    if stage.scene.style == "neon":
        tone = linear("ff3ca0")
    canvas.rgb += tone * (dome * np.float32(0.26))[..., None].astype(np.float32)


def draw_space(stage: Stage) -> None:
    canvas, scene = stage.canvas, stage.scene
    tones: tuple[Array, ...] = ()
    if scene.colours:
        codes = ("160a3c", "5a2a9c", "e0488c", "ffc890", "8cc8ff")
        tones = tuple(toward(linear(code), scene.colours[i % len(scene.colours)], 0.9) for i, code in enumerate(codes))
    paint_nebula(canvas, scene.seed, tones)
    paint_stars(canvas, scene.seed, 1.0, 1.5, 1.2)


def _draw_underwater(stage: Stage) -> None:
    from .deep import paint_underwater

    paint_underwater(stage)


def _draw_abstract(stage: Stage) -> None:
    from .deep import paint_abstract

    paint_abstract(stage)


DRAWERS: dict[str, Callable[[Stage], None]] = {
    "mountains": draw_mountains,
    "lake": draw_lake,
    "river": draw_lake,
    "sea": draw_sea,
    "island": draw_island,
    "beach": draw_beach,
    "forest": draw_forest,
    "meadow": draw_meadow,
    "hills": draw_hills,
    "desert": draw_desert,
    "canyon": draw_canyon,
    "city": draw_city,
    "space": draw_space,
    "underwater": _draw_underwater,
    "abstract": _draw_abstract,
}
