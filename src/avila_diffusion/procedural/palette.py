"""Colours: the light of each hour and weather as named palettes, and how a colour word bends them.

Palettes are written as sRGB and handed out in linear light. Bending happens in Oklab (Björn Ottosson, 2020), where a
change of hue keeps the lightness that the composition rests on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from .noise import Array


@dataclass(frozen=True)
class Palette:
    """The colours of a scene's light, linear RGB.

    zenith, high, low, horizon: the clear sky from top to bottom; glow: the air around the sun; sun: its disc;
    light: what falls on the land; shade: what the sky adds from all sides; haze: what distance fades into;
    cloud_lit, cloud_dark: the two sides of a cloud; water: its depth; power: how strong the direct light is, 0 to 2.
    """

    zenith: Array
    high: Array
    low: Array
    horizon: Array
    glow: Array
    sun: Array
    light: Array
    shade: Array
    haze: Array
    cloud_lit: Array
    cloud_dark: Array
    water: Array
    power: float


TONES = tuple(field.name for field in fields(Palette) if field.name != "power")

# zenith high low horizon | glow sun light shade haze | cloud lit, cloud dark, water | power of the direct light
PALETTES: dict[str, tuple[str, float]] = {
    "sunset ember": ("1d2a55 54507f d4745e ffb662 ff8434 fff0c4 ff9c58 565478 c98672 ffad78 5c4769 1f2f50", 1.5),
    "sunset rose": ("2c3f78 7d69a8 ea8a9c ffcfa2 ff8f7c fff2d8 ffa08a 645f8c d094a0 ffb3a6 6a5684 27365f", 1.4),
    "sunset gold": ("2f5580 7091a6 ecbc76 ffe0a0 ffb04a fff6dc ffbe6e 5d6b80 d3ab80 ffd9a0 6d6670 23425c", 1.5),
    "sunset violet": ("18164a 4c3288 b84c92 ff9468 ff6a6a ffe6c4 ff8670 4f447c a4648e ff8f90 48306a 1d1d4c", 1.4),
    "sunset crimson": ("2a2248 6c3560 cc5648 ff9650 ff5424 ffe2a8 ff7238 543a5a b4604c ff7a50 502a42 2a1c38", 1.4),
    "sunrise peach": ("4a78b4 92abd2 f6c4b2 ffe6c2 ffb88a fff8e6 ffc896 7186ac dcc0b8 ffe0cc 8c8cac 345a80", 1.4),
    "sunrise mist": ("6890b8 a4bed2 eed8c6 fff0d6 ffd4a0 fffaf0 ffdcb0 7c92ac e2d4c8 fff0e0 9aa6b6 42667e", 1.2),
    "sunrise lilac": ("4460a4 9a94cc ecb4c8 ffdcb8 ffa890 fff4e0 ffbca0 7076ac d0b0c2 ffd4cc 8478a4 34508a", 1.3),
    "day azure": ("1c5cac 4a90d4 98c6ea d8e8f0 fff4dc ffffff fff0d4 6c8cb8 b4cce0 ffffff 98aac2 17587a", 1.9),
    "day alpine": ("14489a 3c7ec8 86b8e4 cfe2f0 fff6e4 ffffff fff3dc 6482b4 a8c4e0 ffffff 8fa2c0 154e74", 2.0),
    "day tropic": ("0f6cc0 3aa0e0 90d4f0 def2f0 fffae0 ffffff fff4d8 74a0c0 bcdcec ffffff a4bccc 0a8a98", 2.0),
    "day soft": ("5688bc 8ab2d6 bcd4e4 e8ece8 fff0d4 ffffff fff0d8 8498b4 ccd6dc fffaf2 a8b2c2 2c607c", 1.6),
    "dusk blue": ("0c1b44 263f78 7478ac e2a68e e88c70 ffe8d0 b08a98 3c4a78 6c74a0 c08c9c 2c355c 142448", 0.7),
    "dusk mauve": ("1a1a48 463c7c 946a9c eca088 e87c78 ffe4d0 b8809c 444274 7c6c98 cc8c9c 38305c 1c2048", 0.7),
    "night clear": ("04091d 091739 14305c 2c5078 a8c4f0 f4f6ff 8cacdc 16264a 1a3458 5a74a0 0c1630 061230", 0.55),
    "night teal": ("031019 07243a 0f4054 2a6670 a0dce0 f0fcff 84bcc8 123240 164050 4c7c8c 0a1e2c 052030", 0.55),
    "night violet": ("0a0620 1a1244 382a6c 645088 c8b4f0 f8f4ff a49cdc 261e4c 342c5c 7068a0 140e30 0e0e34", 0.55),
    "storm": ("20272f 3a444e 5e6a74 98a09e b8bcb4 e8e8e0 a8b0ac 56626c 76828a 98a2a8 2b333b 1c2c34", 0.5),
    "overcast": ("8694a4 9ea9b6 b8c0c8 d4d8da e4e4e0 fafafa cccfd0 8c98a4 c0c8ce d4d9de 8d98a5 445a68", 0.7),
    "neon": ("0d0430 2f0c66 a81e8c ff6a6c ff3ca0 fff09a ff5cb8 3c2a80 7c2c90 ff6cb4 3a1670 170a48", 1.2),
}

# What each hour may choose from; the seed decides.
HOURS: dict[str, tuple[str, ...]] = {
    "sunset": (
        "sunset ember",
        "sunset rose",
        "sunset gold",
        "sunset violet",
        "sunset ember",
        "sunset rose",
        "sunset crimson",
    ),
    "sunrise": ("sunrise peach", "sunrise mist", "sunrise lilac"),
    "day": ("day azure", "day alpine", "day soft"),
    "dusk": ("dusk blue", "dusk mauve"),
    "night": ("night clear", "night teal", "night violet", "night clear"),
}

COLOURS: dict[str, str] = {
    "red": "e02424",
    "orange": "f58a1f",
    "yellow": "f4cf2e",
    "gold": "e8b23a",
    "green": "36a84a",
    "teal": "1fa39a",
    "turquoise": "2cc4bc",
    "cyan": "28c0e0",
    "blue": "2c62e0",
    "indigo": "3c34b4",
    "purple": "8434c4",
    "lavender": "a48ae0",
    "magenta": "d42cb0",
    "pink": "f07cae",
    "brown": "8a5a34",
    "white": "f2f2f2",
    "grey": "909090",
    "black": "202020",
}

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(code: str) -> Array:
    """Linear RGB (3,) of a six-digit sRGB code."""
    srgb = np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    light: Array = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return light


def _assemble(tones: dict[str, Array], power: float) -> Palette:
    """A palette of its twelve tones."""
    return Palette(
        zenith=tones["zenith"],
        high=tones["high"],
        low=tones["low"],
        horizon=tones["horizon"],
        glow=tones["glow"],
        sun=tones["sun"],
        light=tones["light"],
        shade=tones["shade"],
        haze=tones["haze"],
        cloud_lit=tones["cloud_lit"],
        cloud_dark=tones["cloud_dark"],
        water=tones["water"],
        power=power,
    )


def named(name: str) -> Palette:
    """The palette of that name."""
    codes, power = PALETTES[name]
    return _assemble(dict(zip(TONES, map(linear, codes.split()), strict=True)), power)


def oklab(colour: Array) -> tuple[float, float, float]:
    """Lightness, chroma and hue (radians) of a linear RGB colour."""
    lab = _TO_LAB @ np.cbrt(np.maximum(_TO_LMS @ colour.astype(np.float64), 0))
    return float(lab[0]), math.hypot(lab[1], lab[2]), math.atan2(lab[2], lab[1])


def from_oklab(lightness: float, chroma: float, hue: float) -> Array:
    """The linear RGB of an Oklab colour, clipped at black."""
    lab = np.array([lightness, chroma * math.cos(hue), chroma * math.sin(hue)])
    rgb: Array = np.linalg.inv(_TO_LMS) @ (np.linalg.inv(_TO_LAB) @ lab) ** 3
    return np.maximum(rgb, 0).astype(np.float32)


def _turn(start: float, end: float) -> float:
    """The signed way from one hue to another, the short way round."""
    return (end - start + math.pi) % (2 * math.pi) - math.pi


def toward(colour: Array, name: str, amount: float = 0.85) -> Array:
    """`colour` bent to the hue of a colour word, its lightness mostly kept."""
    light, chroma, hue = oklab(colour)
    target_light, target_chroma, target_hue = oklab(linear(COLOURS[name]))
    if name in ("white", "grey", "black"):
        shifted = light + amount * 0.35 * (target_light - light)
        return from_oklab(shifted, chroma * (1 - 0.8 * amount), hue)
    away = _turn(hue, target_hue)
    room = min(light, 1.15 - light) * 0.42
    wished = min(max(chroma, 0.6 * target_chroma), room + 0.02)
    if name == "brown":
        light, wished = light * 0.85, wished * 0.8
    return from_oklab(light, chroma + amount * (wished - chroma), hue + amount * away)


def away_from(colour: Array, name: str) -> Array:
    """`colour` turned out of the neighbourhood of an unwanted colour word, or greyed where there is nowhere to go."""
    light, chroma, hue = oklab(colour)
    target_light, _, target_hue = oklab(linear(COLOURS[name]))
    if name in ("white", "grey", "black"):
        return from_oklab(light + 0.12 * (light - target_light), chroma * 1.2, hue)
    off = _turn(target_hue, hue)
    if chroma < 0.01 or abs(off) > 1.3:
        return colour
    side = 1.0 if off >= 0 else -1.0
    return from_oklab(light, chroma * 0.7, target_hue + side * 1.45)


def bend(palette: Palette, colours: tuple[str, ...], avoided: tuple[str, ...]) -> Palette:
    """The palette with the wished colours in it and the unwanted ones out of it.

    One colour tints everything; of two, the first takes the upper sky and the shadows, the second the light.
    """
    if not colours and not avoided:
        return palette
    lower = ("low", "horizon", "glow", "light", "cloud_lit", "haze")
    changed: dict[str, Array] = {}
    for tone in TONES:
        colour: Array = getattr(palette, tone)
        if colours and tone != "sun":
            chosen = colours[min(len(colours) - 1, 1 if tone in lower else 0)]
            colour = toward(colour, chosen, 0.9 if tone in lower or len(colours) > 1 else 0.8)
        for name in avoided if tone != "sun" else ():
            colour = away_from(colour, name)
        changed[tone] = colour
    return _assemble(changed, palette.power)


def mix(a: Array, b: Array, part: float) -> Array:
    """Between two linear colours."""
    return a + (b - a) * np.float32(part)


def blend(a: Palette, b: Palette, part: float) -> Palette:
    """Between two palettes."""
    mixed = {tone: mix(getattr(a, tone), getattr(b, tone), part) for tone in TONES}
    return _assemble(mixed, a.power + (b.power - a.power) * part)
