"""Models that predict v, with zero terminal SNR, of EDM and of continuous v: Euler's method written out, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import Progress
from avila_diffusion.sampling.noise import noise_source
from avila_diffusion.text.conditioner import Conditioner

State = dict[str, Tensor]
Numbers = npt.NDArray[Any]
TOLERANCE = 1e-9
STEPS, SCALE = 4, 3.0
REQUEST = GenerateRequest(
    prompt="a cat", negative_prompt="rain", width=64, height=64, steps=STEPS, sampler="Euler", schedule="Karras",
    guidance_scale=SCALE, seed=11,
)  # fmt: skip


def usual_alphas() -> Numbers:
    """Of Stable Diffusion: betas evenly spaced in their square root."""
    return np.cumprod(1 - np.linspace(sqrt(0.00085), sqrt(0.012), 1000) ** 2)


def zero_snr_alphas() -> Numbers:
    """Lin et al. 2023, algorithm 1; the last is not quite 0."""
    root = np.sqrt(usual_alphas())
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return np.asarray([*(root[:-1] ** 2), 4.8973451890853435e-08])


def linear_alphas() -> Numbers:
    """Of another schedule: betas evenly spaced."""
    return np.cumprod(1 - np.linspace(0.0001, 0.02, 1000)).astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Kind:
    """A kind of model: what marks it in a file, and its formulas.

    alphas: its training noise, None for a continuous one from `low` to `high`. x0(x, sigma, ask): the prediction, where
    ask(scaled x, t) runs the network.
    """

    marks: dict[str, list[float]]
    x0: Callable[[Tensor, float, Callable[[Tensor, float], Tensor], Numbers | None], Tensor]
    alphas: Numbers | None = None
    low: float = 0.002
    high: float = 80.0
    prediction: str = "epsilon"


def timestep(sigma: float, alphas: Numbers | None) -> float:
    if alphas is None:
        return 0.25 * log(sigma)
    levels = np.sqrt((1 - alphas) / alphas)
    return float(np.interp(log(sigma), np.log(levels), np.arange(len(levels))))


def from_epsilon(x: Tensor, sigma: float, ask: Any, alphas: Numbers | None) -> Tensor:
    a = 1 / (1 + sigma**2)
    x_t = sqrt(a) * x
    return (x_t - sqrt(1 - a) * ask(x_t, timestep(sigma, alphas))) / sqrt(a)


def from_v(x: Tensor, sigma: float, ask: Any, alphas: Numbers | None) -> Tensor:
    a = 1 / (1 + sigma**2)
    x_t = sqrt(a) * x
    return sqrt(a) * x_t - sqrt(1 - a) * ask(x_t, timestep(sigma, alphas))


def from_edm(x: Tensor, sigma: float, ask: Any, alphas: Numbers | None) -> Tensor:
    data = 0.5
    total = sigma**2 + data**2
    return data**2 / total * x + sigma * data / sqrt(total) * ask(x / sqrt(total), timestep(sigma, alphas))


MEAN, DEVIATION = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
KINDS = {
    "epsilon": Kind({}, from_epsilon, usual_alphas()),
    "v": Kind({"v_pred": []}, from_v, usual_alphas(), prediction="v"),
    "zero terminal SNR": Kind({"v_pred": [], "ztsnr": []}, from_v, zero_snr_alphas(), prediction="v"),
    "edm": Kind({"edm_mean": MEAN, "edm_std": DEVIATION}, from_edm, prediction="edm"),
    "continuous v": Kind(
        {"edm_vpred.sigma_max": [120.0], "edm_vpred.sigma_min": [0.01]}, from_v, None, 0.01, 120.0, prediction="v"
    ),
    "own alphas_cumprod": Kind({"alphas_cumprod": linear_alphas().tolist()}, from_epsilon, linear_alphas()),
}


def make(kind: Kind, make_engine: Any) -> ModelEngine:
    def mark(state: State) -> None:
        state |= {name: torch.tensor(values).float() for name, values in kind.marks.items()}

    engine: ModelEngine = make_engine(change=mark, dtype="float64")
    assert engine.model.spec.noise.prediction == kind.prediction
    return engine


def karras(high: float, low: float) -> list[float]:
    ends = high ** (1 / 7), low ** (1 / 7)
    return [float(value**7) for value in np.linspace(*ends, STEPS)] + [0.0]


def reference(engine: ModelEngine, kind: Kind) -> Tensor:
    """Euler's method on the network itself."""
    if kind.alphas is None:
        sigmas = karras(kind.high, kind.low)
    else:
        levels = np.sqrt((1 - kind.alphas) / kind.alphas)
        sigmas = karras(float(levels[-1]), float(levels[0]))
    towers = Conditioner(engine.model.spec, engine.model.text, torch.device("cpu"), torch.float64)
    with torch.no_grad():
        cond, base = (towers.encode(text, width=64, height=64).context for text in ("a cat", "rain"))
        x = noise_source("nv", 11).draw((1, 4, 8, 8)).double() * sigmas[0]
        for sigma, following in pairwise(sigmas):

            def x0(context: Tensor, x: Tensor = x, sigma: float = sigma) -> Tensor:
                def ask(scaled: Tensor, t: float) -> Tensor:
                    return engine.model.unet(scaled, torch.tensor([t], dtype=torch.float64), context)

                return kind.x0(x, sigma, ask, kind.alphas)

            guided = x0(base) + SCALE * (x0(cond) - x0(base))
            x = x + (x - guided) / sigma * (following - sigma)
    return x


@pytest.mark.parametrize("name", KINDS)
def test_a_run_is_the_formula(name: str, make_engine: Any, latents_of: Any, finish: Any) -> None:
    kind = KINDS[name]
    engine = make(kind, make_engine)
    expected = reference(engine, kind)
    (latent,) = latents_of(engine, REQUEST)
    top = float(expected.abs().max())
    assert 0.1 < top < 1000
    assert float((latent - expected).abs().max()) < TOLERANCE * top
    assert finish(engine.generate(REQUEST)).to_numpy().std() > 10


def test_the_formulas_differ(make_engine: Any) -> None:
    """Each is told from every other by far more than the tolerance."""
    found = [reference(make(KINDS[name], make_engine), KINDS[name]) for name in KINDS]
    for index, latent in enumerate(found):
        for other in found[:index]:
            assert float((latent - other).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "first"), [("zero terminal SNR", 4518.76), ("own alphas_cumprod", 157.41), ("edm", 80)]
)
def test_the_first_level(name: str, first: float, make_engine: Any) -> None:
    engine = make(KINDS[name], make_engine)
    events = [event for event in engine.generate(REQUEST) if isinstance(event, Progress)]
    sigmas = [event.sigma for event in events if event.sigma is not None]
    assert sigmas[0] == pytest.approx(first, rel=1e-4)
    assert len(sigmas) == STEPS


def test_latents_of_an_edm_model_are_standardised_by_channel(make_engine: Any, latents_of: Any, finish: Any) -> None:
    engine = make(KINDS["edm"], make_engine)
    (latent,) = latents_of(engine, REQUEST)
    mean, deviation = (torch.tensor(v, dtype=torch.float32).double().view(1, 4, 1, 1) for v in (MEAN, DEVIATION))
    with torch.no_grad():
        picture = engine.model.vae.decode(latent / 0.5 * deviation + mean)
    pixels = ((picture[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).float() * 255
    made = finish(engine.generate(REQUEST)).to_numpy()
    assert np.abs(made.astype(int) - pixels.numpy().astype(np.uint8)).max() <= 1
    assert (made == pixels.numpy().astype(np.uint8)).mean() > 0.999
