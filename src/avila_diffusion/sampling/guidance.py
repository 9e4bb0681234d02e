"""Several predictions of x0 to one: classifier-free guidance, and the types that samplers and their drivers share.

Whatever changes guidance further (prompt schedules, masks, a refiner) is a function from `Denoise` to `Denoise`, or
chooses between several by the call's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import RequestError
from .denoiser import Cond, Denoiser


@dataclass(frozen=True, eq=False)
class Call:
    """What a sampler wants evaluated: x0 of x at noise level sigma.

    x: (1, channels, h, w). step: of the sampler, from 0; second-order samplers yield twice with the same step.
    want_uncond: the unguided prediction is needed too. number: of the call in its run, from 0; the driver counts.
    refined: whether a second model, a refiner, answers from here on.
    """

    x: Tensor
    sigma: float
    step: int
    want_uncond: bool = False
    number: int = 0
    refined: bool = False


@dataclass(frozen=True, eq=False)
class Denoised:
    """The answer to a Call. x0: guided prediction, of x's shape. uncond: the negative prompt's alone, if made."""

    x0: Tensor
    uncond: Tensor | None = None


Denoise = Callable[[Call], Denoised]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far the prompts are followed, and when.

    scale: of the difference to the negative prompt. scales: one for each step instead, the last for all that follow.
    rescale: phi of Lin et al. 2023, arXiv:2305.08891, section 3.4: 0 leaves the guided x0 as it is, 1 gives it the
        standard deviation of the unguided. ComfyUI's RescaleCFG does the same to the v-prediction, not to x0.
    start, stop: guidance acts in the steps from this share of the run to before that one (Kynkaanniemi et al. 2024,
        arXiv:2404.07724).
    skip_early: none in the calls up to and with this share of all, if above 0 (AUTOMATIC1111's "Ignore negative prompt
        during early sampling").
    ngms, ngms_all: none at levels below ngms in every second call, or in all (its "Negative Guidance minimum sigma").
    ngms_level: what of a sigma is compared with ngms, None for sigma itself.
    """

    scale: float = 7.0
    rescale: float = 0.0
    start: float = 0.0
    stop: float = 1.0
    scales: tuple[float, ...] | None = None
    skip_early: float = 0.0
    ngms: float = 0.0
    ngms_all: bool = False
    ngms_level: Callable[[float], float] | None = None

    def scale_at(self, step: int) -> float:
        """The scale of a step, where guidance acts."""
        return self.scales[min(step, len(self.scales) - 1)] if self.scales else self.scale

    def acts(self, call: Call, steps: int, calls: int) -> bool:
        """Whether the negative prompt is looked at."""
        share = call.step / steps
        if share < self.start or (share >= self.stop and self.stop < 1):
            return False
        if self.skip_early > 0 and call.number / calls <= self.skip_early:
            return False
        level = call.sigma if self.ngms_level is None else self.ngms_level(call.sigma)
        return not (level < self.ngms and (self.ngms_all or call.number % 2 == 1))


def guide(
    denoiser: Denoiser,
    conds: Cond | Sequence[Cond],
    uncond: Cond | None,
    guidance: Guidance,
    *,
    steps: int,
    calls: int | None = None,
) -> Denoise:
    """uncond + sum of weight * scale * (cond - uncond): Ho & Salimans 2022, arXiv:2207.12598, and for several conds
    Liu et al. 2022, arXiv:2206.01714 (`AND`).

    steps: of the sampler's run. calls: the model calls that shares of calls are of; as AUTOMATIC1111 counts them, steps,
    or twice that for second-order samplers. Where guidance does not act, the scale is 1 and the first cond stands in for
    uncond, so that one cond is taken as it is whatever its weight; a call that wants the unguided prediction (CFG++) is
    given the first cond's too, as by AUTOMATIC1111, and by the same rule outside of start to stop. An uncond that
    something stands in for is not evaluated, nor one that would cancel out, unless the call wants it.
    Raises RequestError, at the call, where uncond is needed and not there.
    """
    conds = (conds,) if isinstance(conds, Cond) else tuple(conds)

    def denoise(call: Call) -> Denoised:
        acts = guidance.acts(call, steps, calls or steps)
        scale = guidance.scale_at(call.step) if acts else 1.0
        weights = [cond.weight * scale for cond in conds]
        rescales = guidance.rescale > 0 and scale != 1
        if not acts or (sum(weights) == 1 and not rescales and not call.want_uncond):
            predictions, base = denoiser.predict(call.x, call.sigma, conds), None
        elif uncond is None:
            raise RequestError(_missing(scale, call.want_uncond))
        else:
            *predictions, base = denoiser.predict(call.x, call.sigma, (*conds, uncond))
        unguided = base if acts else predictions[0]
        guided = _combined(predictions, weights, unguided)
        if rescales:
            positive = predictions[0] if len(conds) == 1 else _combined(predictions, [c.weight for c in conds], base)
            guided = rescaled(guided, positive, guidance.rescale)
        return Denoised(guided, unguided if acts or call.want_uncond else None)

    return denoise


def classifier_free_guidance(
    denoiser: Denoiser, conds: Cond | Sequence[Cond], uncond: Cond | None, scale: float
) -> Denoise:
    """The same scale at every call; see `guide`."""
    return guide(denoiser, conds, uncond, Guidance(scale=scale), steps=1)


def guide_edit(
    denoiser: Denoiser,
    cond: Cond,
    uncond: Cond,
    guidance: Guidance,
    image_scale: float,
    *,
    steps: int,
    calls: int | None = None,
) -> Denoise:
    """Guidance by text and by picture: Brooks et al. 2022, arXiv:2211.09800, equation 3, with the negative prompt in place of
    the empty one.

    cond, uncond: both with the picture in `concat`. image_scale: 1 is `guide` with these two. Where guidance does not act
    the cond is taken as it is. Of several prompts (`AND`) there is no such guidance.
    """

    def denoise(call: Call) -> Denoised:
        scale = guidance.scale_at(call.step)
        if not guidance.acts(call, steps, calls or steps):
            (x0,) = denoiser.predict(call.x, call.sigma, (cond,))
            return Denoised(x0, x0 if call.want_uncond else None)
        assert uncond.concat is not None
        blind = replace(uncond, concat=torch.zeros_like(uncond.concat))
        both, picture, nothing = denoiser.predict(call.x, call.sigma, (cond, uncond, blind))
        guided = nothing + scale * (both - picture) + image_scale * (picture - nothing)
        if guidance.rescale > 0:
            guided = rescaled(guided, both, guidance.rescale)
        return Denoised(guided, nothing)

    return denoise


def rescaled(guided: Tensor, positive: Tensor, phi: float) -> Tensor:
    """Equations 15 and 16 of Lin et al. 2023: phi of the way to `guided` with the standard deviation of `positive`.

    Over all but the first dimension.
    """
    over = tuple(range(1, guided.ndim))
    spread = guided.std(dim=over, keepdim=True)
    # What is constant but for rounding has no deviation to change, and stays; dividing would make it NaN or huge.
    rounding = 4 * torch.finfo(guided.dtype).eps * guided.abs().amax(dim=over, keepdim=True)
    ratio = torch.where(spread <= rounding, 1.0, positive.std(dim=over, keepdim=True) / spread)
    return phi * (guided * ratio) + (1 - phi) * guided


def _combined(predictions: Sequence[Tensor], weights: Sequence[float], base: Tensor | None) -> Tensor:
    """base + sum of weight * (how far x0 is from base); without a base the weights add up to 1 and it cancels out."""
    if base is None:
        terms = [weight * x0 for weight, x0 in zip(weights, predictions, strict=True)]
        return sum(terms[1:], terms[0])
    guided = base
    for weight, x0 in zip(weights, predictions, strict=True):
        guided = guided + weight * (x0 - base)
    return guided


def _missing(scale: float, wanted: bool) -> str:
    if wanted:
        return "this sampler needs a negative conditioning at any guidance scale, even an empty one; give one"
    return f"guidance scale {scale:g} needs a negative conditioning, even an empty one; 1 does without"
