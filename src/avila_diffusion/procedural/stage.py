"""What every scene shares: the canvas, the light of the hour, and the backdrop it is played before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas
from .land import Cover, Relief, mountains, shader
from .night import paint_aurora, paint_milky_way, paint_moon, paint_stars
from .noise import Array, stream
from .palette import Palette, bend, blend, linear, mix, named, toward
from .sky import FORMS, Sky, paint_clouds, paint_cumulus, paint_sky
from .terrain import View, paint_ground
from .understand import Scene

FOCAL = 1.15

HORIZONS = {
    "sea": 0.56, "beach": 0.50, "island": 0.56, "city": 0.74, "lake": 0.60, "river": 0.60, "forest": 0.62,
    "desert": 0.56, "canyon": 0.52, "meadow": 0.58, "hills": 0.58, "mountains": 0.60,
}  # fmt: skip


@dataclass
class Stage:
    """A scene on its way to the canvas.

    horizon: its y. sun: (x, y) of the sun or moon. moonlit: it is the moon. glint: colour of its path on water.
    """

    canvas: Canvas
    scene: Scene
    palette: Palette
    horizon: float
    sun: tuple[float, float]
    moonlit: bool

    def rng(self, name: str) -> np.random.Generator:
        """The stream of random numbers for one use."""
        return stream(self.scene.seed, name)

    @property
    def night(self) -> bool:
        return self.scene.time == "night"

    @property
    def low_sun(self) -> bool:
        return self.scene.time in ("sunset", "sunrise")

    @property
    def dim(self) -> float:
        """How much light falls on near things, 0 to 1: silhouettes at night and against a low sun."""
        return {"day": 1.0, "sunset": 0.34, "sunrise": 0.45, "dusk": 0.22, "night": 0.12}[self.scene.time]

    def near(self, code: str, strength: float = 1.0) -> Array:
        """A near thing of that sRGB colour in this light."""
        light = self.palette.shade * np.float32(0.55) + self.palette.light * np.float32(
            0.62 * min(1.0, self.palette.power)
        )
        return np.asarray(linear(code) * light * np.float32(self.dim * 1.35 * strength), np.float32)

    def leaf(self, code: str) -> str:
        """Colour of foliage for the season: `code` in summer."""
        wished = self.scene.tint("foliage")
        if wished is not None:
            light = {"white": "e8e8e8", "black": "1c1c1c"}.get(wished)
            return light if light is not None else _tinted(code, wished)
        return {"winter": "c8d0d8", "autumn": "c8641c", "spring": "86a840", "summer": code}[self.scene.season]


def _tinted(code: str, name: str) -> str:
    colour = toward(linear(code) * np.float32(1.6) + np.float32(0.02), name, 1.0)
    srgb = np.clip(np.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour ** (1 / 2.4) - 0.055), 0, 1)
    return "".join(f"{round(float(c) * 255):02x}" for c in srgb)


def light_of(scene: Scene) -> Palette:
    """The scene's palette under its weather, with its colour words in it."""
    palette = named(scene.palette)
    if scene.has("storm"):
        palette = blend(
            palette, named("storm"), 0.0 if scene.palette == "storm" else (0.25 if scene.time == "night" else 0.55)
        )
    elif scene.has("rain"):
        palette = blend(
            palette, named("overcast"), 0.5 if scene.time == "day" else (0.06 if scene.time == "night" else 0.25)
        )
    elif scene.has("fog"):
        palette = blend(
            palette, named("overcast"), 0.3 if scene.time == "day" else (0.05 if scene.time == "night" else 0.12)
        )
    return bend(palette, scene.colours, scene.avoided)


def set_stage(canvas: Canvas, scene: Scene) -> Stage:
    """Choose the horizon and the place of the light."""
    rng = stream(scene.seed, "stage")
    horizon = HORIZONS.get(scene.kind, 0.58) + float(rng.uniform(-0.03, 0.03))
    reach = min(canvas.span, 1.5)
    x = float(rng.uniform(-0.30, 0.30)) * reach
    low, high = float(rng.uniform(0.03, 0.14)), float(rng.uniform(0.12, 0.30))
    moon = bool(rng.uniform() < 0.55)
    if scene.time == "night":
        busy = scene.has("milky way", "aurora")
        wished = "moon" in scene.subjects or (moon and not busy and "stars" not in scene.subjects)
        moonlit = wished and not {"moon"} & set(scene.without)
        return Stage(canvas, scene, light_of(scene), horizon, (x, high), moonlit)
    if scene.style == "neon":
        low += 0.03
    y = {"day": -0.12, "dusk": horizon + 0.03}.get(
        scene.time, horizon - low - (0.06 if scene.kind == "mountains" else 0)
    )
    if scene.time == "day" and "sun" in scene.subjects:
        y = high * 0.7
    return Stage(canvas, scene, light_of(scene), horizon, (x, y), False)


def paint_heaven(stage: Stage) -> None:
    """Everything in the sky, from the stars to the clouds."""
    canvas, scene, palette = stage.canvas, stage.scene, stage.palette
    grim = scene.has("storm", "rain") or (scene.has("fog") and scene.time == "day")
    sunless = "sun" in scene.without or grim
    glow = {"day": 0.30, "sunset": 1.0, "sunrise": 0.85, "dusk": 0.35, "night": 0.0}[scene.time]
    disc = 0.0 if sunless or scene.time in ("dusk", "night") or stage.sun[1] < 0 else 0.03
    retro = scene.style == "neon" and disc > 0 and stage.low_sun
    glow *= 0.35 if sunless else (0.45 if retro else 1.0)
    sky = Sky(
        palette, stage.horizon, stage.sun, 0.15 if retro else disc, glow, "retro" if retro else "plain", scene.seed
    )
    paint_sky(canvas, sky)
    if stage.night or scene.time == "dusk":
        _paint_night(stage, grim)
    _paint_weather_clouds(stage, sky)


def _paint_night(stage: Stage, grim: bool) -> None:
    canvas, scene, palette = stage.canvas, stage.scene, stage.palette
    if "stars" not in scene.without and not grim:
        city = scene.kind == "city"
        density = 1.4 if scene.has("stars", "milky way") else (0.25 if scene.time == "dusk" or city else 0.8)
        paint_stars(canvas, scene.seed, stage.horizon, density, 0.5 if scene.time == "dusk" else 1.0)
        galaxy = scene.has("milky way", "space") or (scene.has("stars") and not scene.has("moon"))
        if galaxy or (stage.night and not stage.moonlit and not city and not scene.has("aurora")):
            paint_milky_way(canvas, scene.seed, stage.horizon, palette, 1.0 if galaxy else 0.7)
    if scene.has("aurora"):
        lower, upper = linear("2cff9a"), linear("8a3cff")
        if scene.colours:
            lower, upper = (
                toward(c, scene.colours[min(i, len(scene.colours) - 1)], 0.95) for i, c in enumerate((lower, upper))
            )
        paint_aurora(canvas, scene.seed, stage.horizon, (lower, upper))
    if stage.moonlit and stage.night and not scene.has("storm"):
        paint_moon(canvas, *stage.sun, 0.05, palette, scene.seed, "moon" in scene.subjects)


def _paint_weather_clouds(stage: Stage, sky: Sky) -> None:
    scene, rng = stage.scene, stage.rng("weather")
    form = list(FORMS)[int(rng.integers(len(FORMS)))]
    cover, heaps = float(rng.uniform(0.34, 0.56)), bool(rng.uniform() < 0.5)
    if "clouds" in scene.without or (scene.has("clear") and not scene.has("clouds")):
        return
    if scene.has("storm", "rain"):
        paint_clouds(stage.canvas, sky, "banks", 0.95)
        paint_clouds(stage.canvas, sky, "streaks", 0.62, 0.4)
        return
    if (scene.has("fog") or sky.kind == "retro") and not scene.has("clouds"):
        return
    if stage.night:
        if scene.has("clouds"):
            paint_clouds(stage.canvas, sky, form, 0.5)
        elif not scene.has("stars", "milky way", "aurora") and rng.uniform() < 0.6:
            paint_clouds(stage.canvas, sky, "streaks", 0.34)
        return
    if scene.time == "day" and (heaps or scene.has("clouds")):
        paint_cumulus(stage.canvas, sky, 0.55 if not scene.has("clouds") else 0.75)
        cover *= 0.7
    paint_clouds(stage.canvas, sky, form, min(0.8, cover + (0.2 if scene.has("clouds") else 0.0)))


def paint_mountains(
    stage: Stage, near: float, floor: float, tall: float = 1.0, eye: float = 3.0, woods: bool = True
) -> None:
    """The ranges at the back of many scenes, from `near` on, down to y = floor."""
    scene, palette, rng = stage.scene, stage.palette, stage.rng("relief")
    trees = 0.0 if not woods or "forest" in scene.without or scene.season == "winter" else 0.30
    size = float(rng.uniform(24, 36))
    ridge = float(rng.uniform(0.55, 0.95))
    height = float(rng.uniform(48, 64)) * tall
    relief = Relief(
        size=size,
        tall=height,
        ridge=ridge,
        start=near,
        full=float(rng.uniform(55, 75)),
        gap=float(rng.uniform(0.45, 0.7)),
        gap_x=stage.sun[0] / FOCAL,
        trees=trees,
        treeline=float(rng.uniform(4.5, 7)),
    )
    view = View(eye, stage.horizon, FOCAL, near, 190.0)
    cover = mountain_cover(stage, relief)
    paint_ground(
        stage.canvas,
        view,
        mountains(stage.rng("land"), relief),
        shader(palette, cover, stage.sun[0], 190.0, stage.low_sun),
        floor,
    )


def mountain_cover(stage: Stage, relief: Relief) -> Cover:
    """Colours of mountain ground by season, hour and weather."""
    scene = stage.scene
    day = scene.time == "day"
    winter = scene.season == "winter"
    low = linear({"winter": "6a7480", "autumn": "8a5a22", "spring": "50702c", "summer": "34502a"}[scene.season])
    rock = linear("70665c")
    snow = linear("dfe6f0" if winter else "f6f8fc")
    wished = scene.tint("ground")
    if wished is not None:
        low, rock = toward(low, wished), toward(rock, wished)
    low, rock = low * np.float32(1.2), rock * np.float32(1.15)
    fog = scene.has("fog")
    snow_from = 1.5 if winter else relief.tall * 0.20
    return Cover(
        rock,
        mix(low, linear("e4ebf4"), 0.55 if winter else 0.0),
        snow,
        snow_from,
        relief.treeline,
        haze=(4.5 if fog else 0.75 if day else 1.3),
        mist=(0.95 if fog else 0.14 if day else 0.34),
        mist_top=(3.2 if fog else 2.0),
        sharp=1.5 if winter else 1.0,
    )
