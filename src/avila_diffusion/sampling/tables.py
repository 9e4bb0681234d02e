"""The training noise as a table of levels.

A noise level is sigma, the standard deviation of the noise in x = x0 + sigma * noise (Karras et al. 2022). Everything
here is float64 on the CPU. AUTOMATIC1111 computes the same from a float32 buffer of alphas_cumprod, which moves sigma
by at most 1.3e-5 of its value (at the smallest level); give that buffer as `alphas_cumprod` to have its rounding too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import NoiseConfig
from ..errors import Unsupported

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

    def nearest_t(self, sigma: Tensor | float) -> Tensor:
        """The whole timestep whose ln(sigma) is nearest, which is what ComfyUI asks the network about."""
        if self.continuous:
            return self.sigma_to_t(sigma)
        distances = torch.as_tensor(sigma, dtype=torch.float64).log().unsqueeze(-1) - self.sigmas.log()
        return distances.abs().argmin(-1).double()


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
