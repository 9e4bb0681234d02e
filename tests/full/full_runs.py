"""What both sides of a comparison of whole runs are given: a picture, a mask, prompts, settings. 256x256 pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

SIDE, STEPS, SCALE, SEED = 256, 10, 5.0, 7
"""Ten steps of Euler's method lie at whole timesteps, to which diffusers rounds."""
PROMPT, NEGATIVE = "a quiet cat, 3 hats", "rain"
STRENGTH, RAN = 0.5, 6
"""Of ten steps six are run, as AUTOMATIC1111 counts: one more than the share."""
SWITCH = 0.7


def photo() -> PIL.Image.Image:
    """Waves of colour."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(5 * x + 2 * y), np.cos(7 * y * x), np.sin(9 * y + 1)]
    return PIL.Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))


def mask() -> PIL.Image.Image:
    """A white rectangle, along latent cells."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[64:192, 32:160] = 255
    return PIL.Image.fromarray(pixels)


SETTINGS: dict[str, Any] = {
    "width": SIDE,
    "height": SIDE,
    "steps": STEPS,
    "sampler": "Euler",
    "guidance_scale": SCALE,
    "seed": SEED,
}
RUNS: dict[str, dict[str, Any]] = {
    "image": {"image": photo(), "strength": STRENGTH},
    "inpainting": {"image": photo(), "mask": mask(), "mask_blur": 0, "strength": STRENGTH},
    "refiner": {"refiner_switch": SWITCH},
}
"""Name → what is asked of us beside the settings."""
MISTAKES: dict[str, dict[str, dict[str, Any]]] = {
    "image": {
        "one step more": {"strength": STRENGTH + 0.1},
        "one text layer less": {"clip_skip": 2},
        "noise of another size": {"noise_multiplier": 1.001},
    },
    "inpainting": {
        "half of the mask hidden": {"mask_weight": 0.5},
        "noise of another size": {"noise_multiplier": 1.001},
    },
    "refiner": {"a step later": {"refiner_switch": SWITCH + 0.15}},
}
"""Name of the run → name → what is asked otherwise."""
