"""Several predictions of x0 to one: classifier-free guidance, and the types that samplers and their drivers share.

Whatever changes guidance (intervals, lists over steps, prompt schedules, masks, a refiner) is a function from `Denoise`
to `Denoise`, or chooses between several by the call's step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import RequestError
from .denoiser import Cond, Denoiser


@dataclass(frozen=True, eq=False)
class Call:
    """What a sampler wants evaluated: x0 of x at noise level sigma.

    x: (1, channels, h, w). step: of the sampler, from 0; second-order samplers yield twice with the same step.
    want_uncond: the unguided prediction is needed too. number: of the call in its run, from 0; the driver counts.
    """

    x: Tensor
    sigma: float
    step: int
    want_uncond: bool = False
    number: int = 0


@dataclass(frozen=True, eq=False)
class Denoised:
    """The answer to a Call. x0: guided prediction, of x's shape. uncond: the negative prompt's alone, if made."""

    x0: Tensor
    uncond: Tensor | None = None


Denoise = Callable[[Call], Denoised]


def classifier_free_guidance(
    denoiser: Denoiser, conds: Cond | Sequence[Cond], uncond: Cond | None, scale: float
) -> Denoise:
    """uncond + sum of weight * scale * (cond - uncond): Ho & Salimans 2022, arXiv:2207.12598, and for several conds
    Liu et al. 2022, arXiv:2206.01714 (`AND`).

    Where uncond would cancel out (one cond of weight 1 at scale 1) it is not evaluated, unless the call wants it.
    Raises RequestError where uncond is needed and not there.
    """
    conds = (conds,) if isinstance(conds, Cond) else tuple(conds)
    weights = [cond.weight * scale for cond in conds]

    def denoise(call: Call) -> Denoised:
        if sum(weights) == 1 and not call.want_uncond:
            predictions = denoiser.predict(call.x, call.sigma, conds)
            terms = [weight * x0 for weight, x0 in zip(weights, predictions, strict=True)]
            return Denoised(sum(terms[1:], terms[0]))
        if uncond is None:
            raise RequestError(
                f"guidance scale {scale:g} needs a negative conditioning, even an empty one; 1 does without"
            )
        *predictions, base = denoiser.predict(call.x, call.sigma, (*conds, uncond))
        guided = base
        for weight, x0 in zip(weights, predictions, strict=True):
            guided = guided + weight * (x0 - base)
        return Denoised(guided, base)

    return denoise
