"""The samplers: generators that yield a `Call` and are sent the `Denoised`, and return the finished latent.

x is (1, channels, h, w) with noise of level sigmas[0]; sigmas are float64 on the CPU, falling, usually to 0. A sampler
computes in x's dtype, never changes x in place, never calls a model and knows nothing of images beside its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import hypot, isclose
from typing import Any

from torch import Tensor

from ...errors import RequestError
from ..names import Compat, SamplerInfo
from ..noise import StepNoise
from ..tables import NoiseTable
from .consistency import lcm, tcd
from .dpm import dpm_2, dpm_2_ancestral
from .dpm_solver import dpm_adaptive, dpm_fast
from .dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_2s_ancestral, dpmpp_3m_sde, dpmpp_sde
from .euler import euler, euler_ancestral, euler_ancestral_cfg_pp, euler_cfg_pp, heun, heunpp2
from .grid import ddim, ddim_cfgpp, ddpm, plms
from .lms import lms
from .multistep import deis, ipndm, ipndm_v
from .restart import restart
from .run import Run
from .stochastic import er_sde, sa_solver
from .unipc import uni_pc, uni_pc_bh2

SAMPLERS: dict[str, Callable[..., Run]] = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpmpp_2m_sde_heun,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "euler_ancestral": euler_ancestral,
    "euler": euler,
    "lms": lms,
    "heun": heun,
    "heunpp2": heunpp2,
    "dpm_2": dpm_2,
    "dpm_2_ancestral": dpm_2_ancestral,
    "dpm_fast": dpm_fast,
    "dpm_adaptive": dpm_adaptive,
    "restart": restart,
    "euler_cfg_pp": euler_cfg_pp,
    "euler_ancestral_cfg_pp": euler_ancestral_cfg_pp,
    "ddim": ddim,
    "ddim_cfgpp": ddim_cfgpp,
    "plms": plms,
    "uni_pc": uni_pc,
    "uni_pc_bh2": uni_pc_bh2,
    "lcm": lcm,
    "tcd": tcd,
    "ddpm": ddpm,
    "deis": deis,
    "ipndm": ipndm,
    "ipndm_v": ipndm_v,
    "er_sde": er_sde,
    "sa_solver": sa_solver,
}
"""Key of a sampler → f(x, sigmas, noise, *, …): beside these the options that its row names, and `table` where it says so."""


def start(
    sampler: SamplerInfo,
    noise: Tensor,
    sigmas: Tensor,
    *,
    latent: Tensor | None = None,
    level: float | None = None,
    extra: float = 0.0,
    compat: Compat = "a1111",
    table: NoiseTable | None = None,
) -> Tensor:
    """The latent that a run starts from, of noise's shape and dtype.

    noise: (1, channels, h, w), unit normal. Without a latent that is noise * sigma, or the variance-preserving process'
    unit noise, by the sampler's `text_start`. With one, it is noised to `level` (see `schedules.image_sigmas`; by
    default the first of sigmas); where that is not the first level, it is scaled as AUTOMATIC1111's variance-preserving
    samplers see it: noised for one level, read as another. extra: of the noise once more, beside a latent, which the
    sampler is not told of.
    compat: in "comfyui" every run starts from noise * sigma (beside the latent), or noise * sqrt(1 + sigma^2) where sigma
    is the largest of `table`, which is needed then.
    """
    first = float(sigmas[0])
    if compat == "comfyui":
        assert table is not None, "ComfyUI's start depends on the largest level of the table"
        whole = first > table.sigma_max or isclose(first, table.sigma_max, rel_tol=1e-5)
        noised = noise * (hypot(1, first) if whole else first)
        return noised if latent is None else latent + noised + noise * extra
    if latent is None:
        return noise * (first if sampler.text_start == "scaled" else hypot(1, first))
    if level is None or level == first:
        return latent + noise * (first + extra)
    return (latent + noise * (level + extra)) * (hypot(1, first) / hypot(1, level))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run may set of a sampler; None is the sampler's own value.

    eta: weight of the noise between steps. s_noise: factor of all noise between steps.
    s_churn, s_tmin, s_tmax: how much noise is added before steps, and between which levels (Karras et al. 2022,
    algorithm 2).
    """

    eta: float | None = None
    s_noise: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None

    def given(self) -> dict[str, float]:
        """Those that are set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def check_options(sampler: SamplerInfo, options: Options) -> None:
    """Raise RequestError for an option that the sampler does not take: nothing is ignored in silence."""
    unknown = [name for name in options.given() if name not in sampler.options]
    if unknown:
        takes = f"; it takes {', '.join(sampler.options)}" if sampler.options else ""
        raise RequestError(f"{sampler.name} takes no {' and no '.join(unknown)}{takes}; leave it out")


def sample(
    sampler: SamplerInfo,
    x: Tensor,
    sigmas: Tensor,
    noise: StepNoise,
    *,
    table: NoiseTable | None = None,
    options: Options = Options(),
) -> Run:
    """The generator of a run. Advance it with `next`, then `send` it the `Denoised` for each `Call`.

    table: the model's noise, needed by the samplers whose row says so.
    Raises RequestError for an option that the sampler does not take.
    """
    check_options(sampler, options)
    named: dict[str, Any] = options.given()
    if sampler.eta is not None:
        named.setdefault("eta", sampler.eta)
    if sampler.table:
        named["table"] = table
    return SAMPLERS[sampler.key](x, sigmas, noise, **named)
