"""The one request behind the Python call, the command line, the HTTP routes and the metadata in the picture.

Limits and validation live here and nowhere else. Nothing here imports torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from .errors import RequestError
from .sampling.names import resolve_sampler, resolve_schedule

Rng = Literal["nv", "cpu"]

MAX_SIDE = 8192
MAX_PIXELS = 4096 * 4096
MAX_STEPS = 1000
MAX_BATCH = 64
MAX_COUNT = 1000
MAX_CLIP_SKIP = 12
MAX_PROMPT = 100_000
MAX_SEED = 2**64 - 1
RANDOM_SEEDS = 2**32 - 2
"""A drawn seed is below this, as AUTOMATIC1111 draws them."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What is asked for. `None` means: the model's or the sampler's own default, filled in by `resolved`.

    width, height: pixels. guidance_scale: 1 turns classifier-free guidance (Ho & Salimans 2022) off.
    seed: of the first picture; picture i of a job has seed + i, from 0 again after 2**64 - 1; None or -1 draws one.
    batch: pictures made together; count: how many batches, one after another.
    sampler, schedule: any name that `sampling.names` knows. eta: noise of ancestral samplers and DDIM.
    clip_skip: 1 is the text tower's last layer, 2 the one before. rng: source of the noise, `nv` or `cpu`.

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
    rng: Rng = "nv"
    eta: float | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in ("prompt", "negative_prompt", "sampler", "schedule", "rng"):
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"{name} must be text, not {type(getattr(self, name)).__name__}")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_PROMPT:
                raise RequestError(
                    f"{name} has {len(getattr(self, name)):,} characters; at most {MAX_PROMPT:,} are read"
                )
        for name in ("width", "height"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1, MAX_SIDE)
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise RequestError(f"{self.width}x{self.height} has more than {MAX_PIXELS:,} pixels; ask for fewer")
        _whole("steps", self.steps, 1, MAX_STEPS)
        _whole("batch", self.batch, 1, MAX_BATCH)
        _whole("count", self.count, 1, MAX_COUNT)
        _whole("clip_skip", self.clip_skip, 1, MAX_CLIP_SKIP)
        if self.seed is not None:
            _whole("seed", self.seed, -1, MAX_SEED)
        _number("guidance_scale", self.guidance_scale, 0.0, 100.0)
        if self.eta is not None:
            _number("eta", self.eta, 0.0, 10.0)
        if self.rng not in ("nv", "cpu"):
            raise RequestError(f"rng {self.rng[:80]!r} is unknown; it is nv (as AUTOMATIC1111 on a GPU) or cpu")
        resolve_sampler(self.sampler)
        resolve_schedule(self.schedule)

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
        seed = self.seed
        if seed is None or seed == -1:
            seed = secrets.randbelow(RANDOM_SEEDS)
        return replace(
            self,
            seed=seed,
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
        return tuple((self.seed + index) % (MAX_SEED + 1) for index in range(self.batch * self.count))


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, so that metadata and JSON have the latter; everything else as it is."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


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
