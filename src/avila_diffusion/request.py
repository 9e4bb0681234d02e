"""The one request behind the Python call, the command line, the HTTP routes and the metadata in the picture.

Limits and validation live here and nowhere else. Nothing here imports torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal

from .errors import RequestError
from .sampling.names import resolve_sampler, resolve_schedule

Rng = Literal["nv", "cpu", "gpu"]
Compat = Literal["a1111", "comfyui", "diffusers"]
Emphasis = Literal["Original", "No norm", "Ignore", "None"]

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

MAX_SIDE = 8192
MAX_PIXELS = 4096 * 4096
MAX_STEPS = 1000
MAX_BATCH = 64
MAX_COUNT = 1000
MAX_CLIP_SKIP = 12
MAX_PROMPT = 100_000
MAX_GUIDANCE = 100.0
MAX_SIGMA = 100_000.0
MAX_SEED = 2**64 - 1
RANDOM_SEEDS = 2**32 - 2
"""A drawn seed is below this, as AUTOMATIC1111 draws them."""


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

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in ("prompt", "negative_prompt", "sampler", "schedule", "compat", "emphasis"):
            _text(name, getattr(self, name))
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_PROMPT:
                raise RequestError(
                    f"{name} has {len(getattr(self, name)):,} characters; at most {MAX_PROMPT:,} are read"
                )
        for name in ("width", "height", "seed_width", "seed_height"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1, MAX_SIDE)
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise RequestError(f"{self.width}x{self.height} has more than {MAX_PIXELS:,} pixels; ask for fewer")
        for name, (low, high) in _WHOLES.items():
            _whole(name, getattr(self, name), low, high)
        optional = {field.name for field in fields(self) if field.default is None}
        for name, (bottom, top) in _NUMBERS.items():
            if getattr(self, name) is not None or name not in optional:
                _number(name, getattr(self, name), bottom, top)
        if not isinstance(self.ngms_all, bool):
            raise RequestError(f"ngms_all must be true or false, not {_shown(self.ngms_all)}")
        self._check_noise()
        self._check_levels()
        resolve_sampler(self.sampler)
        resolve_schedule(self.schedule)

    def _check_noise(self) -> None:
        for name, value in (("seed", self.seed), ("variation_seed", self.variation_seed)):
            if value is not None:
                _whole(name, value, -1, MAX_SEED)
        _one_of("compat", self.compat, COMPATS)
        _one_of("emphasis", self.emphasis, EMPHASES)
        if self.emphasis != "Original" and self.compat != "a1111":
            raise RequestError(f"emphasis means something with compat a1111 only; leave it out with {self.compat}")
        if self.rng is not None:
            _text("rng", self.rng)
            _one_of("rng", self.rng, RNGS)
        if (self.seed_width is None) != (self.seed_height is None):
            raise RequestError("seed_width and seed_height go together; give both, or neither")
        if self.noise_batch is not None:
            _whole("noise_batch", self.noise_batch, 1, MAX_BATCH)
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
                raise RequestError(f"{name} must be a list of numbers, not {_shown(values)}")
            object.__setattr__(self, name, tuple(map(_plain, values)))
            for value in getattr(self, name):
                _number(f"a value of {name}", value, 0.0, most)
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
                f"sigmas replace the schedule, and sampler {_shown(self.sampler)} names {joint.name}; "
                f"ask for {sampler.name!r}, or leave out the sigmas"
            )
        steps = len(self.sigmas) - 1
        falling = all(here > there for here, there in pairwise(self.sigmas))
        if not 1 <= steps <= MAX_STEPS or not falling:
            raise RequestError(
                f"sigmas must be 2 to {MAX_STEPS + 1:,} falling noise levels, the last usually 0, such as 14.6, 3.5, 0.8, 0"
            )
        object.__setattr__(self, "steps", steps)

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

    def resolved(self, size: int) -> GenerateRequest:
        """The same request with nothing left open: seed drawn, size filled in, sampler and schedule by their own names.

        A joint name such as "DPM++ 2M Karras" sets the schedule where that was left at Automatic.
        `size` is the default width and height in pixels.
        """
        sampler, joint = resolve_sampler(self.sampler)
        schedule = resolve_schedule(self.schedule)
        if joint is not None and schedule.key == "automatic":
            schedule = joint
        return replace(
            self,
            seed=_drawn(self.seed),
            variation_seed=_drawn(self.variation_seed) if self.variation_strength else None,
            rng=self.rng or ("cpu" if self.compat == "comfyui" else "nv"),
            noise_batch=(self.noise_batch or self.noise_index + self.batch) if self.compat == "comfyui" else None,
            width=size if self.width is None else self.width,
            height=size if self.height is None else self.height,
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


_WHOLES: dict[str, tuple[int, int]] = {
    "steps": (1, MAX_STEPS),
    "batch": (1, MAX_BATCH),
    "count": (1, MAX_COUNT),
    "clip_skip": (1, MAX_CLIP_SKIP),
    "ensd": (-MAX_SEED, MAX_SEED),
    "noise_index": (0, MAX_BATCH - 1),
}
_NUMBERS: dict[str, tuple[float, float]] = {
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
}
"""Smallest and largest value of the fields that are numbers."""


def _drawn(seed: int | None) -> int:
    return secrets.randbelow(RANDOM_SEEDS) if seed is None or seed == -1 else seed


def _wrapped(seed: int) -> int:
    return seed % (MAX_SEED + 1)


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, so that metadata and JSON have the latter; everything else as it is."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, not {type(value).__name__}")


def _one_of(name: str, value: str, known: Mapping[str, str]) -> None:
    if value not in known:
        raise RequestError(f"{name} {_shown(value)} is unknown; it is one of {', '.join(known)}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be a whole number, not {_shown(value)}")
    if not low <= value <= high:
        raise RequestError(f"{name} is {_shown(value)}; it must be from {low:,} to {high:,}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, not {_shown(value)}")
    if not low <= value <= high:  # NaN fails too
        raise RequestError(f"{name} is {_shown(value)}; it must be from {low:g} to {high:g}")


def _shown(value: object) -> str:
    """A value as one line of an error shows it, however long or odd it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to write out integers of thousands of digits.
        return (
            f"{value:,}" if abs(value) < 10**30 else f"a number of about {int(value.bit_length() * 0.30103):,} digits"
        )
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
