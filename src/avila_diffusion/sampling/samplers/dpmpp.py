"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095): exponential integrators on the predicted x0.

lambda = -ln(sigma) throughout, and h is a step's length in it.
"""

from __future__ import annotations

from math import exp, expm1, log, sqrt

from torch import Tensor

from ..guidance import Call
from ..noise import StepNoise
from .run import Run, ancestral_step, steps


def dpmpp_2m(x: Tensor, sigmas: Tensor, noise: StepNoise) -> Run:
    """DPM++ 2M: DPM-Solver++(2M), algorithm 2.

    D is x0 extrapolated from the last two predictions; the first step, and a step to 0, take the latest alone. A level
    that comes twice adds nothing.
    """
    last = h_last = None
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        D = denoised.x0
        if sigma_next == 0:
            return D
        if sigma_next == sigma:
            continue
        h = log(sigma) - log(sigma_next)
        if last is not None and h_last is not None:
            r = h_last / h
            D = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * last
        x = sigma_next / sigma * x - expm1(-h) * D
        last, h_last = denoised.x0, h
    return x


def dpmpp_2s_ancestral(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM++ 2S a: a step of DPM-Solver++(2S), algorithm 1 with r = 1/2, to sigma_down, then noise up to sigma_next.

    The step to sigma_down 0 takes the one prediction (k-diffusion).
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        if sigma_down > 0:
            sigma_mid = sqrt(sigma * sigma_down)
            u = blend(x, denoised.x0, sigma_mid / sigma)
            denoised = yield Call(u, sigma_mid, step)
        x = blend(x, denoised.x0, sigma_down / sigma)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpmpp_sde(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM++ SDE: DPM-Solver++(2S) with r = 1/2 where the way to the middle and the whole way are both ancestral.

    The noises are the Brownian path's over the first half and over the whole of the step (k-diffusion).
    """
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        if sigma_next == 0:
            return denoised.x0
        sigma_mid = sqrt(sigma * sigma_next)
        sigma_down, sigma_up = ancestral_step(sigma, sigma_mid, eta)
        u = blend(x, denoised.x0, sigma_down / sigma)
        if sigma_up > 0:
            u = u + noise(sigma, sigma_mid) * (s_noise * sigma_up)
        denoised = yield Call(u, sigma_mid, step)  # weighs 1 / (2r) = 1, and the first prediction nothing
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        x = blend(x, denoised.x0, sigma_down / sigma)
        if sigma_up > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpmpp_2m_sde(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM++ 2M SDE: SDE-DPM-Solver++(2M), the midpoint form, with eta for the weight of the noise (k-diffusion)."""
    return _dpmpp_2m_sde(x, sigmas, noise, eta, s_noise, heun=False)


def dpmpp_2m_sde_heun(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM++ 2M SDE Heun: the same with the linear term integrated exactly (k-diffusion)."""
    return _dpmpp_2m_sde(x, sigmas, noise, eta, s_noise, heun=True)


def _dpmpp_2m_sde(x: Tensor, sigmas: Tensor, noise: StepNoise, eta: float, s_noise: float, *, heun: bool) -> Run:
    previous = h_previous = None
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        D = denoised.x0
        if sigma_next == 0:
            return D
        if sigma_next == sigma:
            continue
        h = log(sigma / sigma_next)
        H = h * (1 + eta)
        x = blend(x, D, exp(-H))
        if previous is not None and h_previous is not None:
            weight = _phi_2(H) if heun else -expm1(-H) / 2
            x = x + (D - previous) * (weight * h / h_previous)
        if eta > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_next * sqrt(-expm1(-2 * eta * h)))
        previous, h_previous = D, h
    return x


def dpmpp_3m_sde(x: Tensor, sigmas: Tensor, noise: StepNoise, *, eta: float = 1.0, s_noise: float = 1.0) -> Run:
    """DPM++ 3M SDE: SDE-DPM-Solver++ with the derivatives of x0 from three predictions, as far as there are (Crowson).

    D1 and D2 are the first and half the second derivative in lambda, times h and h^2: divided differences. k-diffusion
    gives D2 half the weight that it would need for the third order, so that without noise the order is 2.
    """
    history: list[tuple[Tensor, float]] = []  # of the last two: the prediction, and the length of the step it made
    for step, sigma, sigma_next in steps(sigmas):
        denoised = yield Call(x, sigma, step)
        D0 = denoised.x0
        if sigma_next == 0:
            return D0
        if sigma_next == sigma:
            continue
        h = log(sigma / sigma_next)
        H = h * (1 + eta)
        x = blend(x, D0, exp(-H))
        if history:
            (before, h_1), *older = reversed(history)
            r0 = h_1 / h
            D1 = first = (D0 - before) / r0
            for earlier, h_2 in older:
                r1 = h_2 / h
                D2 = (first - (before - earlier) / r1) / (r0 + r1)
                D1 = first + D2 * r0
                x = x - D2 * (_phi_2(H) / H - 1 / 2)
            x = x + D1 * _phi_2(H)
        if eta > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_next * sqrt(-expm1(-2 * eta * h)))
        history = [*history[-1:], (D0, h)]
    return x


def blend(x: Tensor, x0: Tensor, ratio: float) -> Tensor:
    """The first-order step to `ratio` of x's noise level, were x0 to stay as it is."""
    return ratio * x + (1 - ratio) * x0


def _phi_2(h: float) -> float:
    """Weight of a derivative of x0 in a step of length h: (exp(-h) - 1 + h) / h."""
    return expm1(-h) / h + 1
