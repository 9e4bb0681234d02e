"""Limits of a request's fields, the names that some of them have, and how a value is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import RequestError

RNGS: dict[str, str] = {
    "nv": "an NVIDIA GPU's numbers, on any device; what AUTOMATIC1111 draws unless told otherwise",
    "cpu": "torch's on the processor",
    "gpu": "torch's on the GPU that the model runs on",
}
COMPATS: dict[str, str] = {
    "a1111": "as AUTOMATIC1111's WebUI: a stream of noise per picture, its schedules and starts",
    "comfyui": "as ComfyUI: one draw of noise for a batch, its schedules and starts, its weights in prompts",
    "diffusers": "prompts as the diffusers library reads them: 75 tokens, no weights; all else as a1111",
}
EMPHASES: dict[str, str] = {
    "Original": "weights in a prompt multiply its features, then the mean of each chunk is restored",
    "No norm": "weights multiply, and the mean is left as it comes",
    "Ignore": "brackets are read, and weigh nothing",
    "None": "brackets and BREAK are words like others",
}

LATENT_CELL = 8
"""Pixels of a picture's side that one of its latent stands for: of a picture that is encoded as it is, the least."""

RESIZE_MODES: dict[str, str] = {
    "resize": "to the size asked for, whatever the proportions",
    "crop": "to cover it; what is over is cut off",
    "fill": "to fit into it; the rest is the picture's edge, repeated",
    "latent": "encoded as it is, then its latent is resized",
    "keep": "fitted into it as it is drawn, and what is drawn fitted back: the picture keeps its own size",
}
MASKED_CONTENTS: dict[str, str] = {
    "fill": "colours from around the mask",
    "original": "what the picture shows there",
    "noise": "noise in place of the latent",
    "nothing": "zeros in place of the latent",
}
INPAINT_AREAS: dict[str, str] = {
    "whole": "the whole picture is drawn, and the masked part taken of it",
    "masked": "the masked part and some pixels around it are drawn, at the whole size asked for, and put back",
}
LATENT_UPSCALERS: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""How a latent is made larger, by AUTOMATIC1111's names: mode of interpolation, and whether it is antialiased."""
UPSCALERS: dict[str, str] = {
    **{
        name: f"the latent, {mode}{', antialiased' if smooth else ''}"
        for name, (mode, smooth) in LATENT_UPSCALERS.items()
    },
    "Lanczos": "the picture",
    "Nearest": "the picture",
    "None": "the picture, by Lanczos as in AUTOMATIC1111",
}
SWITCHES: dict[str, str] = {
    "timestep": "the share of the noise that is taken away, as in AUTOMATIC1111 since 1.8",
    "step": "the share of the model calls that are made",
}
TILINGS: dict[str, str] = {
    "none": "",
    "x": "the left and right edges fit together",
    "y": "the upper and lower edges fit together",
    "both": "all edges fit together",
}

MAX_SIDE = 8192
MAX_PIXELS = 4096 * 4096
MAX_STEPS = 1000
MAX_SCHEDULE = 100 * MAX_STEPS
"""Steps of a schedule that a strength lengthens: so many are made within a second, and at strength 0.01 any number asked for
has its schedule."""
MAX_BATCH = 64
MAX_COUNT = 1000
MAX_CLIP_SKIP = 12
MAX_PROMPT = 100_000
MAX_GUIDANCE = 100.0
MAX_SIGMA = 100_000.0
MAX_SEED = 2**64 - 1
MAX_OUTPAINT = 4096
MAX_BLUR = 256.0
RANDOM_SEEDS = 2**32 - 2
"""A drawn seed is below this, as AUTOMATIC1111 draws them."""

WHOLES: dict[str, tuple[int, int]] = {
    "steps": (1, MAX_STEPS),
    "batch": (1, MAX_BATCH),
    "count": (1, MAX_COUNT),
    "clip_skip": (1, MAX_CLIP_SKIP),
    "ensd": (-MAX_SEED, MAX_SEED),
    "noise_index": (0, MAX_BATCH - 1),
    "mask_padding": (0, MAX_SIDE),
    "hires_width": (1, MAX_SIDE),
    "hires_height": (1, MAX_SIDE),
    "hires_steps": (0, MAX_STEPS),
}
CHOICES: dict[str, dict[str, str]] = {
    "compat": COMPATS,
    "emphasis": EMPHASES,
    "resize_mode": RESIZE_MODES,
    "masked_content": MASKED_CONTENTS,
    "inpaint_area": INPAINT_AREAS,
    "hires_upscaler": UPSCALERS,
    "refiner_by": SWITCHES,
    "tiling": TILINGS,
}
"""Fields that are one of some words."""
SWITCHED = ("ngms_all", "exact_steps", "mask_invert", "mask_soft")
"""Fields that are true or false."""
NUMBERS: dict[str, tuple[float, float]] = {
    "guidance_scale": (0.0, MAX_GUIDANCE),
    "variation_strength": (0.0, 1.0),
    "eta": (0.0, 10.0),
    "s_churn": (0.0, 1000.0),
    "s_tmin": (0.0, MAX_SIGMA),
    "s_tmax": (0.0, MAX_SIGMA),
    "s_noise": (0.0, 10.0),
    "rho": (0.01, 100.0),
    "sigma_min": (1e-5, MAX_SIGMA),
    "sigma_max": (1e-5, MAX_SIGMA),
    "guidance_rescale": (0.0, 1.0),
    "guidance_start": (0.0, 1.0),
    "guidance_stop": (0.0, 1.0),
    "skip_early": (0.0, 1.0),
    "ngms": (0.0, MAX_SIGMA),
    "strength": (0.0, 1.0),
    "extra_noise": (0.0, 1.0),
    "noise_multiplier": (0.0, 2.0),
    "mask_blur": (0.0, MAX_BLUR),
    "mask_weight": (0.0, 1.0),
    "image_guidance_scale": (0.0, MAX_GUIDANCE),
    "hires_scale": (1.0, 8.0),
    "hires_guidance_scale": (0.0, MAX_GUIDANCE),
    "refiner_switch": (0.0, 1.0),
}
"""Smallest and largest value of the fields that are numbers."""


def plain(value: Any) -> Any:
    """numpy's numbers as Python's, so that metadata and JSON have the latter; everything else as it is."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, not {type(value).__name__}")


def check_choice(name: str, value: str, known: Mapping[str, str]) -> None:
    if value not in known:
        raise RequestError(f"{name} {shown(value)} is unknown; it is one of {', '.join(known)}")


def upscaler_named(name: str) -> str:
    """An upscaler of the second pass by its name, in any case; a name that is none as it is, for `check_choice` to refuse."""
    wanted = name.strip().casefold()
    return next((known for known in UPSCALERS if known.casefold() == wanted), name)


def check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number, not {shown(value)}")
    if not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}; it must be from {low:,} to {high:,}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {shown(value)}")
    if not low <= value <= high:  # NaN fails too
        raise RequestError(f"{name} is {shown(value)}; it must be from {low:g} to {high:g}")


def check_device(name: object) -> None:
    """Raise RequestError unless it is the name of a device; whether this machine has it is for `device.choose_policy`."""
    if not isinstance(name, str) or re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,4})?", name) is None:
        raise RequestError(f"device {str(name)[:80]!r} is unknown; it is auto, cpu, cuda, cuda:N or mps")


def lengthened(steps: int, strength: float) -> int:
    """Steps of the schedule whose last `steps` are run, so that they begin at a strength above 0 and up to 1; 0 at strength 0.

    Raises RequestError where there are too many to make.
    """
    share = min(strength, 0.999)  # as AUTOMATIC1111 has it
    if share <= 0:
        return 0
    if steps / share >= MAX_SCHEDULE + 1:
        raise RequestError(
            f"strength {strength:g} lengthens a schedule of {steps:,} to more than {MAX_SCHEDULE:,} steps; "
            f"ask for a strength of at least {steps / MAX_SCHEDULE:g}, or 0"
        )
    return int(steps / share)


def shown(value: object) -> str:
    """A value as one line of an error shows it, however long or odd it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to write out integers of thousands of digits.
        return (
            f"{value:,}" if abs(value) < 10**30 else f"a number of about {int(value.bit_length() * 0.30103):,} digits"
        )
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
