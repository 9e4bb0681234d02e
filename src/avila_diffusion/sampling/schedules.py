"""The training noise as a table of levels, and the noise levels of a run.

A noise level is sigma, the standard deviation of the noise in x = x0 + sigma * noise (Karras et al. 2022). Everything
here is float64 on the CPU. AUTOMATIC1111 computes the same from a float32 buffer of alphas_cumprod, which moves sigma
by at most 1.3e-5 of its value (at the smallest level); give that buffer as `alphas_cumprod` to have its rounding too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import NoiseConfig
from ..errors import RequestError, Unsupported
from .grids import GRIDS
from .names import SCHEDULES as SCHEDULE_INFOS
from .names import SamplerInfo, ScheduleInfo
from .restarts import restart_levels

TERMINAL_ALPHA = 4.8973451890853435e-08
"""alphas_cumprod of a zero-terminal-SNR model's last timestep, in place of 0: sigma stays finite (4518.76)."""


@dataclass(frozen=True, eq=False)
class NoiseTable:
    """Noise level against training timestep.

    sigmas: (steps,) ascending, float64. continuous: the network is told 0.25 ln(sigma) instead of a timestep, and any
    level is as good as another (EDM); the sigmas are then evenly spaced in ln(sigma).
    sigma_data: standard deviation of the latents that the network's input and output are scaled for.
    """

    sigmas: Tensor
    continuous: bool = False
    sigma_data: float = 1.0

    @classmethod
    def from_config(cls, config: NoiseConfig, alphas_cumprod: Tensor | None = None) -> NoiseTable:
        """The table of a model.

        alphas_cumprod: (steps,) in place of the betas of the config, such as a checkpoint's own buffer.
        Raises Unsupported where the config or the buffer does not describe growing noise.
        """
        continuous = config.continuous or config.prediction == "edm"
        if continuous:
            ends = torch.tensor((config.edm_sigma_min, config.edm_sigma_max), dtype=torch.float64).log()
            sigmas = torch.linspace(float(ends[0]), float(ends[1]), config.steps, dtype=torch.float64).exp()
        else:
            if alphas_cumprod is None and config.alphas_cumprod is not None:
                alphas_cumprod = torch.tensor(config.alphas_cumprod, dtype=torch.float64)
            alphas = _trained_alphas(config) if alphas_cumprod is None else alphas_cumprod.to("cpu", torch.float64)
            alphas = _zero_terminal_snr(alphas) if config.zero_terminal_snr else alphas
            sigmas = ((1 - alphas) / alphas).sqrt()
        # NaN fails every comparison
        if (
            sigmas.ndim != 1
            or len(sigmas) < 2
            or not bool((sigmas.diff() > 0).all() and 0 < sigmas[0] < sigmas[-1] < math.inf)
        ):
            raise Unsupported(
                f"the model's noise table of {sigmas.numel()} levels does not rise from above 0 to a finite level; "
                "its betas or alphas_cumprod are damaged or of another kind"
            )
        if continuous:
            return cls(sigmas, continuous=True, sigma_data=config.sigma_data)
        return cls(sigmas)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def at(self, index: Tensor | float) -> Tensor:
        """Noise level at a place of the table, which may lie between two: ln(sigma) is interpolated (k-diffusion)."""
        index = torch.as_tensor(index, dtype=torch.float64).clamp(0, len(self.sigmas) - 1)
        low, high = self.sigmas[index.floor().long()], self.sigmas[index.ceil().long()]
        return low * (high / low) ** index.frac()  # whole places give the table's own value, to the bit

    def t_to_sigma(self, t: Tensor | float) -> Tensor:
        """Noise level at a timestep of the network, whole or not."""
        return (4 * torch.as_tensor(t, dtype=torch.float64)).exp() if self.continuous else self.at(t)

    def sigma_to_t(self, sigma: Tensor | float) -> Tensor:
        """Fractional timestep of a noise level, clamped to the table: the inverse of `t_to_sigma`.

        As k-diffusion without quantization, which is what AUTOMATIC1111 asks for unless told otherwise.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if self.continuous:
            return sigma.log() / 4
        low = (torch.searchsorted(self.sigmas, sigma, right=True) - 1).clamp(0, len(self.sigmas) - 2)
        log_low, log_high = self.sigmas[low].log(), self.sigmas[low + 1].log()
        return low + ((sigma.log() - log_low) / (log_high - log_low)).clamp(0, 1)


def _trained_alphas(config: NoiseConfig) -> Tensor:
    """Running product of 1 - beta; SD's betas are evenly spaced in their square root ("scaled_linear")."""
    power = 2.0 if config.beta_schedule == "scaled_linear" else 1.0
    start, end = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    betas = torch.linspace(start, end, config.steps, dtype=torch.float64) ** power
    return torch.cumprod(1 - betas, dim=0)


def _zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that it ends in 0 (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
    root = alphas.sqrt()
    alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alphas[-1] = TERMINAL_ALPHA
    return alphas


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a schedule is made of: the table, the levels to run between, and rho, the bend of Karras."""

    table: NoiseTable
    sigma_min: float
    sigma_max: float
    rho: float = 7.0

    def timesteps(self, n: int) -> Tensor:
        """n timesteps, evenly spaced from sigma_max's to sigma_min's."""
        start, end = self.table.sigma_to_t(self.sigma_max), self.table.sigma_to_t(self.sigma_min)
        return torch.linspace(float(start), float(end), n, dtype=torch.float64)


def karras(n: int, span: Span) -> Tensor:
    """Evenly spaced in sigma^(1/rho): Karras et al. 2022, equation 5."""
    start, end = span.sigma_max ** (1 / span.rho), span.sigma_min ** (1 / span.rho)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas: Tensor = (start + ramp * (end - start)) ** span.rho
    return sigmas


def exponential(n: int, span: Span) -> Tensor:
    """Evenly spaced in ln(sigma)."""
    return torch.linspace(math.log(span.sigma_max), math.log(span.sigma_min), n, dtype=torch.float64).exp()


def uniform(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps over the whole table, both ends included; other limits are ignored (AUTOMATIC1111)."""
    table = span.table
    return normal(n, Span(table=table, sigma_min=table.sigma_min, sigma_max=table.sigma_max))


def normal(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps, both ends included."""
    return span.table.t_to_sigma(span.timesteps(n))


def sgm_uniform(n: int, span: Span) -> Tensor:
    """Evenly spaced timesteps without the lowest: the next would be sigma_min, the run goes to 0 instead (SGM)."""
    return span.table.t_to_sigma(span.timesteps(n + 1)[:-1])


def simple(n: int, span: Span) -> Tensor:
    """Every (steps / n)-th level of the table from the top, rounded to whole timesteps (ComfyUI).

    Where more levels are wanted than the table has, they are `uniform`.
    """
    sigmas = span.table.sigmas
    stride = len(sigmas) / n
    if stride < 1:
        return uniform(n, span)
    return sigmas[[len(sigmas) - 1 - int(i * stride) for i in range(n)]]


def ddim(n: int, span: Span) -> Tensor:
    """Every (steps // n)-th level from timestep 1 up (ComfyUI's ddim_uniform).

    So the top level is below sigma_max, the number of levels is n only where n divides the steps (30 give 31, 600 give
    999), and n = 1 gives timestep 1 alone, which is hardly any noise.
    """
    sigmas = span.table.sigmas
    return sigmas[1 :: max(len(sigmas) // n, 1)].flip(0)


SCHEDULES: dict[str, Callable[[int, Span], Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "uniform": uniform,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim": ddim,
}
"""Key of a schedule → its noise levels, falling, without the closing 0."""


def schedule_sigmas(
    info: ScheduleInfo,
    n: int,
    table: NoiseTable,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """The noise levels of n steps: n + 1 values falling from the first level to 0 (`ddim` may give more, see there).

    sigma_min, sigma_max: limits in place of the table's own, for karras, exponential, normal and sgm_uniform.
    Raises RequestError for "automatic", which only a sampler can decide, and for limits that leave no room.
    """
    if info.key not in SCHEDULES:
        raise RequestError(f"schedule {info.name} is decided by the sampler; name one of {', '.join(SCHEDULES)}")
    low = table.sigma_min if sigma_min is None else sigma_min
    high = table.sigma_max if sigma_max is None else sigma_max
    if n < 1 or rho <= 0 or not 0 < low < high < math.inf:
        raise RequestError(
            f"{n} step(s) from sigma {high:g} to {low:g} with rho {rho:g} make no schedule; "
            "at least 1 step, rho above 0 and 0 < smallest < largest are needed"
        )
    levels = SCHEDULES[info.key](n, Span(table=table, sigma_min=low, sigma_max=high, rho=rho))
    return torch.cat([levels, levels.new_zeros(1)])


def sampler_sigmas(
    sampler: SamplerInfo,
    schedule: ScheduleInfo,
    n: int,
    table: NoiseTable,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """The noise levels that a sampler walks for n steps: (levels,) float64, falling.

    "Automatic" is the sampler's own choice; samplers with `discard_penultimate` lose the last level before 0 of n + 1
    steps; those with a grid of their own ignore the schedule and its limits.
    """
    if sampler.grid in GRIDS:
        return GRIDS[sampler.grid](n, table)
    if sampler.denoiser == "lcm":
        from .lcm import lcm_table  # which is made of this module's tables

        table = lcm_table(table)
    if schedule.key == "automatic":
        schedule = SCHEDULE_INFOS[sampler.automatic]
    more = 1 if sampler.discard_penultimate else 0
    sigmas = schedule_sigmas(schedule, n + more, table, rho=rho, sigma_min=sigma_min, sigma_max=sigma_max)
    return torch.cat([sigmas[:-2], sigmas[-1:]]) if more else sigmas


def calls(sampler: SamplerInfo, sigmas: Tensor) -> int | None:
    """Model calls of a run over these levels at the sampler's default options, None where only the run can tell."""
    steps = len(sigmas) - 1
    if sampler.calls == "adaptive":
        return None
    if sampler.calls == "restart":
        return sum(2 if sigma_next > 0 else 1 for _, sigma_next, _ in restart_levels(sigmas))
    if sampler.calls == "two":
        return 2 * steps - int(sigmas[-1] == 0)
    if sampler.calls == "three":
        return max(3 * steps - 3, steps)
    return steps + int(sampler.calls == "extra")


def image_steps(steps: int, strength: float, *, exact: bool = False) -> tuple[int, int]:
    """(steps of the whole schedule, steps run on the picture) for image to image, as AUTOMATIC1111 counts them.

    strength: 0 to 1, how far the picture is noised. By default a share of the steps is run, and one more than the share
    in the grid (`image_sigmas`); `exact` (and the second pass of a high-resolution fix) lengthens the schedule instead.
    """
    share = min(strength, 0.999)
    if not exact:
        return steps, int(share * steps)
    if share <= 0:
        raise RequestError(f"{steps} steps at strength {strength:g} cannot be run; a strength above 0 is needed")
    return int(steps / share), steps - 1


def image_sigmas(sampler: SamplerInfo, sigmas: Tensor, steps: int, run: int) -> tuple[Tensor, float]:
    """(levels to walk, level that the picture is noised to) of image to image.

    sigmas: of the whole schedule, for `steps` steps; run: see `image_steps`. `samplers.start` takes the level.
    """
    if sampler.image_start == "first":
        tail = sigmas[max(steps - run - 1, 0) :]
        return tail, float(tail[0])
    above = max(len(sigmas) - 1 - run, 0)
    return sigmas[min(above + 1, len(sigmas) - 1) :], float(sigmas[above])
