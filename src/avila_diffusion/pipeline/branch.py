"""Leaving a recorded run at a border between two steps: the rest goes by another prompt, scale or sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..errors import RequestError
from ..request import GenerateRequest
from ..sampling.guidance import Call
from ..sampling.names import resolve_sampler
from ..sampling.samplers.run import Run

BEGINNING = ("sampler", "schedule", "eta")
"""Fields of a request that the steps before the border were made by, and that a branch changes."""
OPTIONS = ("eta", "s_noise", "s_churn", "s_tmin", "s_tmax")


@dataclass(frozen=True)
class Branch:
    """at: the border, as the number of steps before it. before: what was asked for up to there."""

    at: int
    before: GenerateRequest

    def beginning(self, request: GenerateRequest) -> GenerateRequest:
        """`request` with the sampler that made the steps before the border."""
        own = {field.name for field in fields(request)} & {*BEGINNING, *OPTIONS}
        return replace(request, **{name: getattr(self.before, name) for name in own})

    def told(self, request: GenerateRequest) -> dict[str, object]:
        """For the metadata of a picture: where it left, and what was otherwise before. Empty where nothing changed."""
        values = ((field.name, getattr(self.before, field.name)) for field in fields(request))
        changed = {name: value for name, value in values if getattr(request, name) != value}
        for name in ("seed", "batch", "count"):  # a batch is asked for alone
            changed.pop(name, None)
        if not changed:
            return {}
        before = "; ".join(f"{name} {value}" for name, value in changed.items())
        return {"Branched at": self.at, "Before the branch": before}


def change(
    before: GenerateRequest,
    at: int,
    *,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
) -> GenerateRequest:
    """What is asked for from the border on. Options that only the sampler before takes fall back to the new one's own.

    Raises RequestError for a border outside the run, and for a sampler that cannot take the recorded levels over.
    """
    # Samplers with levels of their own do not walk the steps that were asked for; `Journal.cut` knows what was recorded.
    own_levels = before.compat != "comfyui" and resolve_sampler(before.sampler)[0].grid != "schedule"
    if at < 0 or (at > before.steps and not own_levels):
        raise RequestError(
            f"there is no border {at} in a run of {before.steps} steps; it must be from 0 to {before.steps}"
        )
    given = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if guidance_scale is not None:
        changes["guidance_list"] = None  # which would win over the scale
    request = replace(before, **changes)
    if sampler is None:
        return request
    new, joint = resolve_sampler(sampler)
    old, _ = resolve_sampler(before.sampler)
    if joint is not None:
        raise RequestError(f"{sampler} names a schedule, and a branch keeps that of the run; ask for {new.name}")
    if new == old:
        return request
    for one, which in ((old, "the run's"), (new, "the new")):
        if one.grid != "schedule" or one.denoiser != "table":
            raise RequestError(
                f"{which} sampler {one.name} walks noise levels of its own, which no other can take over; "
                "branch between samplers that follow the schedule"
            )
    own = {field.name: field.default for field in fields(before)}
    dropped = {name: own[name] for name in OPTIONS if name in own and name not in new.options}
    return replace(request, sampler=new.name, **dropped)  # type: ignore[arg-type]


def switch(run: Run, at: int, sigmas: Tensor, follow: Callable[[Tensor, Tensor], Run]) -> Run:
    """A run that goes over into another at the border of step `at`: follow(x, levels) from there.

    Raises RequestError where the first sampler does not stand at a level of the schedule there, as with churn.
    """
    try:
        call = next(run)
        while call.step < at:
            call = run.send((yield call))
    except StopIteration as end:
        latent: Tensor = end.value
        return latent
    run.close()
    if call.sigma != float(sigmas[at]):
        raise RequestError(
            f"at step {at} the run stands at sigma {call.sigma:.6g}, between two levels of its schedule; "
            "another sampler cannot take over there, choose another step or keep the sampler"
        )
    rest = follow(call.x, sigmas[at:])
    return (yield from _counted_on(rest, at))


def _counted_on(run: Run, at: int) -> Run:
    """The same run, its steps counted from `at`."""
    try:
        call: Call = next(run)
        while True:
            call = run.send((yield replace(call, step=call.step + at)))
    except StopIteration as end:
        latent: Tensor = end.value
        return latent
    finally:
        run.close()
