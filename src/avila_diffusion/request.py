"""The one request behind the Python call, the command line, the HTTP routes and the metadata in the picture.

Limits and validation live here and nowhere else. Nothing here imports torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal

from .errors import RequestError
from .limits import (
    CHOICES,
    LATENT_CELL,
    MAX_BATCH,
    MAX_GUIDANCE,
    MAX_OUTPAINT,
    MAX_PIXELS,
    MAX_PROMPT,
    MAX_SEED,
    MAX_SIDE,
    MAX_SIGMA,
    MAX_STEPS,
    NUMBERS,
    RANDOM_SEEDS,
    RNGS,
    SWITCHED,
    WHOLES,
    check_choice,
    check_number,
    check_text,
    check_whole,
    lengthened,
    plain,
    shown,
    upscaler_named,
)
from .pictures import Picture
from .sampling.names import resolve_sampler, resolve_schedule
from .sizes import asked_size, resize_mode_of

Rng = Literal["nv", "cpu", "gpu"]
Compat = Literal["a1111", "comfyui", "diffusers"]
Emphasis = Literal["Original", "No norm", "Ignore", "None"]
ResizeMode = Literal["resize", "crop", "fill", "latent", "keep"]
MaskedContent = Literal["fill", "original", "noise", "nothing"]
InpaintArea = Literal["whole", "masked"]
Switch = Literal["timestep", "step"]
Tiling = Literal["none", "x", "y", "both"]

PICTURES = ("image", "mask", "depth")
"""The fields that are pictures."""
SECOND_PASS = (
    "hires_upscaler",
    "hires_steps",
    "hires_sampler",
    "hires_schedule",
    "hires_prompt",
    "hires_negative_prompt",
    "hires_guidance_scale",
)
"""The fields that only a second pass looks at, beside its size."""
PROMPTS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What is asked for. `None` means: the model's or the sampler's own default, filled in by `resolved`.

    width, height: pixels. guidance_scale: 1 turns classifier-free guidance (Ho & Salimans 2022) off.
    seed: of the first picture; picture i of a job has seed + i, from 0 again after 2**64 - 1; None or -1 draws one.
    batch: pictures made together; count: how many batches, one after another.
    sampler, schedule: any name that `sampling.names` knows. clip_skip: 1 is the text tower's last layer, 2 the one before.
    compat: whose reading of prompts, noise, schedules and starts holds where programs differ; see COMPATS.
    emphasis: how AUTOMATIC1111 weighs what stands in brackets; see EMPHASES.

    Noise. rng: whose random numbers; see RNGS; by default nv, and cpu as ComfyUI. ensd: added to the seed for the noise
    after the first (AUTOMATIC1111's "eta noise seed delta"; 31337 for NovelAI's pictures).
    variation_seed, variation_strength: 0 to 1, the way from the noise of seed to that of variation_seed; then the seed
    stays and the variation seed counts up with the pictures. seed_width, seed_height: pixels; the noise of a picture of
    that size is pasted into the middle. noise_batch, noise_index: in ComfyUI's way a picture's noise depends on how many
    were drawn with it, and which of them it is; by default the batch's own.

    The sampler's options, None for its own. eta: weight of the noise of ancestral samplers and DDIM. s_churn, s_tmin,
    s_tmax, s_noise: Karras et al. 2022, algorithm 2.

    Noise levels. sigmas: these instead of a schedule, falling; steps follows from them. rho: bend of Karras and
    Polyexponential. sigma_min, sigma_max: between which a schedule runs.

    Guidance. guidance_list: a scale per step, the last goes on; in place of guidance_scale. guidance_rescale: 0 to 1, phi
    of Lin et al. 2023. guidance_start, guidance_stop: between which shares of the steps guidance acts. skip_early: share of
    the steps, at the beginning, without the negative prompt. ngms: below this noise level every second call goes without
    the negative prompt, all with ngms_all (AUTOMATIC1111's "Negative Guidance minimum sigma").

    From a picture. image: what to begin with: a path, bytes of a file, an array, a Pillow image; strength: 0 to 1, how far
    it is noised. exact_steps: all steps are run, not a share of them. extra_noise: on top, in shares of a standard
    deviation; noise_multiplier: of the first noise. resize_mode: how it is brought to width and height; see RESIZE_MODES.
    By default those are the picture's own, in multiples of 8, and one keeps its proportions to the other; a picture of
    which a part is painted keeps its own size then. depth: the depth map that depth models follow. image_guidance_scale:
    how far instruct-pix2pix models stay with the picture.

    A part of it. mask: white is painted anew; of a picture with transparency the opaque part. mask_blur: pixels,
    standard deviation. mask_invert: black is painted. mask_soft: grey is half painted. masked_content: what the sampling
    begins with there; see MASKED_CONTENTS. inpaint_area: see INPAINT_AREAS; mask_padding: pixels around the mask, for
    "masked". mask_weight: how far inpainting models are kept from seeing what is under the mask.
    outpaint: (left, upper, right, lower) pixels that are added to the picture, and painted.

    High-resolution fix: a second pass at hires_scale times the size, or at hires_width x hires_height, where strength,
    hires_upscaler (see UPSCALERS), and what is not None of hires_steps, _sampler, _schedule, _prompt, _negative_prompt and
    _guidance_scale hold; hires_steps may be 0, which is as many as steps. Refiner: the second model takes over at
    refiner_switch (0 to 1, by default 0.8) of what refiner_by measures; see SWITCHES. tiling: which edges
    fit together; see TILINGS.

    >>> GenerateRequest(prompt="a cat", seed=0, sampler="k_dpmpp_2m_ka").resolved(512).schedule
    'Karras'
    >>> GenerateRequest(prompt="a cat", steps=0)
    Traceback (most recent call last):
    avila_diffusion.errors.RequestError: steps is 0; it must be from 1 to 1,000

    Raises RequestError, a ValueError, for a value that cannot be used: one line that names the field.
    """

    prompt: str = ""
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 20
    sampler: str = "DPM++ 2M"
    schedule: str = "Automatic"
    guidance_scale: float = 7.0
    seed: int | None = None
    batch: int = 1
    count: int = 1
    clip_skip: int = 1
    compat: Compat = "a1111"
    emphasis: Emphasis = "Original"
    rng: Rng | None = None
    ensd: int = 0
    variation_seed: int | None = None
    variation_strength: float = 0.0
    seed_width: int | None = None
    seed_height: int | None = None
    noise_batch: int | None = None
    noise_index: int = 0
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    sigmas: tuple[float, ...] | None = None
    rho: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    guidance_list: tuple[float, ...] | None = None
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    skip_early: float = 0.0
    ngms: float = 0.0
    ngms_all: bool = False
    image: Picture | None = None
    mask: Picture | None = None
    depth: Picture | None = None
    strength: float = 0.75
    exact_steps: bool = False
    extra_noise: float = 0.0
    noise_multiplier: float = 1.0
    resize_mode: ResizeMode = "resize"
    image_guidance_scale: float = 1.5
    mask_blur: float = 4.0
    mask_invert: bool = False
    mask_soft: bool = False
    masked_content: MaskedContent = "original"
    inpaint_area: InpaintArea = "whole"
    mask_padding: int = 32
    mask_weight: float = 1.0
    outpaint: tuple[int, int, int, int] | None = None
    hires_scale: float | None = None
    hires_width: int | None = None
    hires_height: int | None = None
    hires_upscaler: str = "Latent"
    hires_steps: int | None = None
    hires_sampler: str | None = None
    hires_schedule: str | None = None
    hires_prompt: str | None = None
    hires_negative_prompt: str | None = None
    hires_guidance_scale: float | None = None
    refiner_switch: float | None = None
    refiner_by: Switch = "timestep"
    tiling: Tiling = "none"

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, plain(getattr(self, name)))
        optional = {field.name for field in fields(self) if field.default is None}
        for name in ("sampler", "schedule", "hires_sampler", "hires_schedule", *PROMPTS, *CHOICES):
            if getattr(self, name) is not None or name not in optional:
                check_text(name, getattr(self, name))
        object.__setattr__(self, "hires_upscaler", upscaler_named(self.hires_upscaler))
        for name, known in CHOICES.items():
            check_choice(name, getattr(self, name), known)
        for name in PROMPTS:
            if len(getattr(self, name) or "") > MAX_PROMPT:
                raise RequestError(
                    f"{name} has {len(getattr(self, name)):,} characters; at most {MAX_PROMPT:,} are read"
                )
        for name in ("width", "height", "seed_width", "seed_height"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, MAX_SIDE)
        _check_area(self.width, self.height)
        for name, (low, high) in WHOLES.items():
            if getattr(self, name) is not None or name not in optional:
                check_whole(name, getattr(self, name), low, high)
        for name, (bottom, top) in NUMBERS.items():
            if getattr(self, name) is not None or name not in optional:
                check_number(name, getattr(self, name), bottom, top)
        for name in SWITCHED:
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be true or false, not {shown(getattr(self, name))}")
        self._check_noise()
        self._check_levels()
        self._check_pictures()
        resolve_sampler(self.sampler)
        resolve_schedule(self.schedule)

    def _check_noise(self) -> None:
        for name, value in (("seed", self.seed), ("variation_seed", self.variation_seed)):
            if value is not None:
                check_whole(name, value, -1, MAX_SEED)
        if self.emphasis != "Original" and self.compat != "a1111":
            raise RequestError(f"emphasis means something with compat a1111 only; leave it out with {self.compat}")
        if self.rng is not None:
            check_text("rng", self.rng)
            check_choice("rng", self.rng, RNGS)
        if (self.seed_width is None) != (self.seed_height is None):
            raise RequestError("seed_width and seed_height go together; give both, or neither")
        if self.noise_batch is not None:
            check_whole("noise_batch", self.noise_batch, 1, MAX_BATCH)
        if self.compat != "comfyui":
            if self.noise_batch is not None or self.noise_index:
                raise RequestError(
                    "noise_batch and noise_index mean something with compat comfyui only; leave them out"
                )
            return
        if self.rng not in (None, "cpu"):
            raise RequestError(f"ComfyUI draws on the processor; rng {self.rng} does not go with compat comfyui")
        for name in ("ensd", "variation_strength", "seed_width"):
            if getattr(self, name):
                raise RequestError(f"ComfyUI has no {name}; leave it out, or leave out compat comfyui")
        of = self.noise_batch or self.noise_index + self.batch
        if self.noise_index + self.batch > of:
            raise RequestError(
                f"noise_index {self.noise_index} and a batch of {self.batch} go beyond a noise_batch of {of}"
            )

    def _check_levels(self) -> None:
        for name, most in (("sigmas", MAX_SIGMA), ("guidance_list", MAX_GUIDANCE)):
            values = getattr(self, name)
            if values is None:
                continue
            if hasattr(values, "tolist"):  # of numpy and torch
                values = values.tolist()
            if isinstance(values, str | bytes) or not isinstance(values, Sequence):
                raise RequestError(f"{name} must be a list of numbers, not {shown(values)}")
            object.__setattr__(self, name, tuple(map(plain, values)))
            for value in getattr(self, name):
                check_number(f"a value of {name}", value, 0.0, most)
        if self.guidance_list is not None and not 1 <= len(self.guidance_list) <= MAX_STEPS:
            raise RequestError(f"guidance_list has {len(self.guidance_list):,} values; 1 to {MAX_STEPS:,} make sense")
        if self.guidance_start > self.guidance_stop:
            raise RequestError(
                f"guidance_start {self.guidance_start:g} lies behind guidance_stop {self.guidance_stop:g}"
            )
        if self.sigmas is None:
            return
        for name in ("rho", "sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                raise RequestError(f"{name} bends a schedule, and sigmas replace it; leave out one of the two")
        if resolve_schedule(self.schedule).key != "automatic":
            raise RequestError(f"sigmas replace the schedule; leave out {self.schedule[:80]!r} or the sigmas")
        sampler, joint = resolve_sampler(self.sampler)
        if joint is not None:
            raise RequestError(
                f"sigmas replace the schedule, and sampler {shown(self.sampler)} names {joint.name}; "
                f"ask for {sampler.name!r}, or leave out the sigmas"
            )
        steps = len(self.sigmas) - 1
        falling = all(here > there for here, there in pairwise(self.sigmas))
        if not 1 <= steps <= MAX_STEPS or not falling:
            raise RequestError(
                f"sigmas must be 2 to {MAX_STEPS + 1:,} falling noise levels, the last usually 0, such as 14.6, 3.5, 0.8, 0"
            )
        object.__setattr__(self, "steps", steps)

    def _check_pictures(self) -> None:
        for name in PICTURES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _picture(name, getattr(self, name)))
        if self.outpaint is not None:
            object.__setattr__(self, "outpaint", _margins(self.outpaint))
        if self.mask is not None and self.image is None:
            raise RequestError("mask needs a picture to be painted into; give image too, or leave out mask")
        as_it_is = self.resize_mode == "latent" and not (self.masked and self.inpaint_area == "masked")
        if self.masked and as_it_is:
            raise RequestError("resize_mode latent has no picture at its new size to mask; take another resize_mode")
        if self.image is not None and as_it_is and min(self.image.size) < LATENT_CELL:
            raise RequestError(
                f"image is {'x'.join(map(str, self.image.size))}, and resize_mode latent encodes it as it is, from "
                f"{LATENT_CELL}x{LATENT_CELL} on; give a larger picture, or take another resize_mode"
            )
        if self.hires_scale is not None and (self.hires_width is not None or self.hires_height is not None):
            raise RequestError("hires_scale and hires_width or hires_height are two sizes; give one of the two")
        if self.hires and self.image is not None:
            raise RequestError(
                "the second pass of a high-resolution fix follows text to image; leave out image, or leave out hires_scale, "
                "hires_width and hires_height and give the size with width and height"
            )
        if self.image is not None and self.sigmas is None and (self.exact_steps or self.compat == "comfyui"):
            lengthened(self.steps, self.strength)
        if self.hires:
            lengthened(self.hires_steps or self.steps, self.strength)
        if self.hires_sampler is not None:
            resolve_sampler(self.hires_sampler)
        if self.hires_schedule is not None:
            resolve_schedule(self.hires_schedule)

    @property
    def masked(self) -> bool:
        """Whether a part of the picture is painted and the rest is kept."""
        return self.image is not None and (self.mask is not None or self.outpaint is not None)

    @property
    def refined_from(self) -> float:
        """The share at which a refiner takes over."""
        return 0.8 if self.refiner_switch is None else self.refiner_switch

    @property
    def hires(self) -> bool:
        """Whether there is a second pass."""
        return any(value is not None for value in (self.hires_scale, self.hires_width, self.hires_height))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerateRequest:
        """A request from plain values, refusing names it does not know."""
        if not isinstance(values, Mapping):
            raise RequestError(f"a request is a table of fields and values, not {type(values).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(" ".join(str(name)[:80].split()) for name in values if name not in known)
        if unknown:
            raise RequestError(f"unknown field {', '.join(unknown[:8])}; the fields are {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, from which `from_dict` makes the same request; JSON can hold them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.to_json() if isinstance(value, Picture) else value for name, value in values.items()}

    def resolved(self, size: int) -> GenerateRequest:
        """The same request with nothing left open: seed drawn, size filled in, sampler and schedule by their own names.

        A joint name such as "DPM++ 2M Karras" sets the schedule where that was left at Automatic.
        `size` is the default width and height in pixels.
        """
        sampler, joint = resolve_sampler(self.sampler)
        schedule = resolve_schedule(self.schedule)
        if joint is not None and schedule.key == "automatic":
            schedule = joint
        width, height = asked_size(self, size)
        return replace(
            self,
            seed=_drawn(self.seed),
            variation_seed=_drawn(self.variation_seed) if self.variation_strength else None,
            rng=self.rng or ("cpu" if self.compat == "comfyui" else "nv"),
            noise_batch=(self.noise_batch or self.noise_index + self.batch) if self.compat == "comfyui" else None,
            width=width,
            height=height,
            resize_mode=resize_mode_of(self),
            hires_steps=self.hires_steps or None,
            sampler=sampler.name,
            schedule=schedule.name,
        )

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of every picture of a resolved request, in order."""
        if self.seed is None or self.seed == -1:
            raise RequestError("the seed is not drawn yet; call resolved() first")
        pictures = range(self.batch * self.count)
        if self.variation_strength:
            return (self.seed,) * len(pictures)
        if self.compat == "comfyui":  # a batch is one draw
            return tuple(_wrapped(self.seed + index // self.batch) for index in pictures)
        return tuple(_wrapped(self.seed + index) for index in pictures)

    @property
    def variation_seeds(self) -> tuple[int | None, ...]:
        """The variation seed of every picture of a resolved request, in order; None where there is no variation."""
        first = self.variation_seed if self.variation_strength else None
        pictures = range(self.batch * self.count)
        return tuple(None if first is None else _wrapped(first + index) for index in pictures)

    def part(self, index: int) -> GenerateRequest:
        """Batch `index` of a resolved request as one of its own, with the same pictures."""
        first = index * self.batch
        return replace(self, count=1, seed=self.seeds[first], variation_seed=self.variation_seeds[first])


def _picture(name: str, value: Any) -> Picture:
    return Picture.from_json(value, name) if isinstance(value, Mapping) else Picture.of(value, name)


def _check_area(width: int | None, height: int | None) -> None:
    if width and height and width * height > MAX_PIXELS:
        raise RequestError(f"{width}x{height} has more than {MAX_PIXELS:,} pixels; ask for fewer")


def _margins(value: Any) -> tuple[int, int, int, int]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 4:
        raise RequestError(f"outpaint must be four numbers of pixels, left, upper, right, lower, not {shown(value)}")
    left, upper, right, lower = map(plain, value)
    for margin in (left, upper, right, lower):
        check_whole("a side of outpaint", margin, 0, MAX_OUTPAINT)
    if not left + upper + right + lower:
        raise RequestError("outpaint adds nothing on any side; give pixels for one, or leave it out")
    return left, upper, right, lower


def _drawn(seed: int | None) -> int:
    return secrets.randbelow(RANDOM_SEEDS) if seed is None or seed == -1 else seed


def _wrapped(seed: int) -> int:
    return seed % (MAX_SEED + 1)
