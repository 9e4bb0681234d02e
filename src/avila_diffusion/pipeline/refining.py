"""When a refiner takes over: a run's calls, marked from there on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..request import Switch
from ..sampling.guidance import Call
from ..sampling.samplers.run import Run
from .plan import Plan


def refining(run: Run, plan: Plan, at: float, by: Switch) -> Run:
    """The same run; from the first call on where the share that is done reaches `at`, its calls are the refiner's. It does not
    give back, even if a sampler goes up to more noise again.

    by: "timestep": the share of the training's timesteps that lie above the call's level; "step": of the calls. Both as
    AUTOMATIC1111 counts them.
    """
    refined, number = False, 0
    try:
        call: Call = next(run)
        while True:
            refined = refined or _done(plan, call.sigma, number, by) >= at
            call = run.send((yield replace(call, refined=refined)))
            number += 1
    except StopIteration as end:
        latent: Tensor = end.value
        return latent
    finally:
        run.close()


def _done(plan: Plan, sigma: float, number: int, by: Switch) -> float:
    if by == "step":
        return number / plan.shared
    sigmas = plan.table.sigmas
    return (len(sigmas) - 1 - int((sigmas - sigma).abs().argmin())) / len(sigmas)
