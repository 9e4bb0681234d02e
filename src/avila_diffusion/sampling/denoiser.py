"""One model call: noisy latents in, predicted x0 out.

Prediction type, input scaling, the way from sigma to a timestep, and dtypes live here and only here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import hypot
from operator import is_
from typing import Protocol

import torch
from torch import Tensor

from ..config import Prediction
from ..errors import NotFinite
from .tables import NoiseTable


@dataclass(frozen=True, eq=False)
class Cond:
    """What one prediction is conditioned on. The first dimension of every tensor is 1.

    context: (1, tokens, width), the text. vector: (1, adm), pooled text and sizes, None where the network takes none.
    weight: of this prompt among several (`AND`). concat: (1, channels, h, w), joined to the scaled latents: mask and
    masked picture of inpainting models, unscaled. control: residuals for the network's skip connections and middle.
    """

    context: Tensor
    vector: Tensor | None = None
    weight: float = 1.0
    concat: Tensor | None = None
    control: tuple[Tensor, ...] | None = None


class Network(Protocol):
    """What the denoiser calls: a UNet's `forward`, always with these keywords. Returns (B, latent channels, h, w).

    x: (B, channels, h, w), scaled and with what is concatenated. t: (B,), fractional timesteps (0.25 ln sigma for EDM).
    context: (B, tokens, width). vector: (B, adm). guidance: (B,), the scale that guidance-distilled networks are told.
    control: tensors of batch B. A network that `shares` takes x, t, vector and guidance of batch 1 as well, for all B rows of
    the context, and is given the same context tensor for the same conds. All in the network's dtype; t and guidance in
    float32, or float64 if that is float64.
    """

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
        control: tuple[Tensor, ...] | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Scaling:
    """x0 = skip * x + out * network(inp * x): the preconditioning of Karras et al. 2022, table 1."""

    inp: float
    skip: float
    out: float


def scaling(prediction: Prediction, sigma: float, sigma_data: float = 1.0) -> Scaling:
    """The coefficients at one noise level, in double precision.

    epsilon: x0 = x - sigma * eps (Ho et al. 2020). v: x0 = alpha x - s v of the variance-preserving x (Salimans & Ho
    2022, arXiv:2202.00512). edm: Karras et al. 2022, equation 7. sigma_data is 1 for the first two.
    """
    total = hypot(sigma, sigma_data)
    if prediction == "epsilon":
        return Scaling(inp=1 / total, skip=1.0, out=-sigma)
    skip, out = (sigma_data / total) ** 2, sigma * sigma_data / total
    return Scaling(inp=1 / total, skip=skip, out=out if prediction == "edm" else -out)


@dataclass(frozen=True)
class Consistency:
    """The boundary condition of a consistency model, f(x, 0) = x: Song et al. 2023, arXiv:2303.01469, equation 5.

    sigma_data, timestep_scale: as Luo et al. 2023, arXiv:2310.04378, choose them for latents.
    """

    sigma_data: float = 0.5
    timestep_scale: float = 10.0

    def shares(self, t: float) -> tuple[float, float]:
        """(of x, of the predicted x0) in what counts as the prediction at timestep t."""
        scaled = self.timestep_scale * t
        total = hypot(scaled, self.sigma_data)
        return (self.sigma_data / total) ** 2, scaled / total


class _Joined:
    """Contexts of conds as one batch: the same tensor for the same conds, by which a network knows a text again."""

    most = 4  # as many as a network remembers

    def __init__(self) -> None:
        self._made: list[tuple[list[Tensor], list[int], Tensor]] = []  # the last used behind

    def of(self, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        if torch.is_grad_enabled() or any(
            part.is_inference() for part in parts
        ):  # the latter do not count their writes
            return torch.cat(parts).to(dtype)
        versions = [part._version for part in parts]
        for index, (known, then, joined) in enumerate(self._made):
            if versions == then and len(known) == len(parts) and all(map(is_, known, parts)) and joined.dtype == dtype:
                self._made.append(self._made.pop(index))
                return joined
        joined = torch.cat(parts).to(dtype)
        self._made = [*self._made, (parts, versions, joined)][-self.most :]
        return joined


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network with its noise table, as a function of noisy latents and sigma.

    prediction: what the network's output means. dtype: what it computes in. guidance: the scale told to
    guidance-distilled (LCM-type) networks, None for all others. consistency: of consistency models, see `lcm`.
    whole_timesteps: the network is asked about the nearest timestep, as ComfyUI does, not one between two.
    shares: the network is given once what is the same for all conds of a call.
    """

    network: Network
    table: NoiseTable
    prediction: Prediction
    dtype: torch.dtype = torch.float32
    guidance: float | None = None
    consistency: Consistency | None = None
    whole_timesteps: bool = False
    shares: bool = False
    _contexts: _Joined = field(default_factory=_Joined, init=False, repr=False)

    def predict(self, x: Tensor, sigma: float, conds: Sequence[Cond]) -> list[Tensor]:
        """The predicted x0 under each cond, in their order, of x's shape and dtype.

        x: (1, channels, h, w) at noise level sigma. Conds that fit together (equal context length, the same kinds of
        input) are one batch in the order given; the others are calls of their own.
        Raises NotFinite where the network returned NaN or infinity.
        """
        predictions: dict[int, Tensor] = {}
        for members in _batches(conds):
            x0 = self._predict_batch(x, sigma, [conds[index] for index in members])
            predictions |= {index: x0[row : row + 1] for row, index in enumerate(members)}
        return [predictions[index] for index in range(len(conds))]

    def _predict_batch(self, x: Tensor, sigma: float, conds: Sequence[Cond]) -> Tensor:
        batch = len(conds)
        scale = scaling(self.prediction, sigma, self.table.sigma_data)
        # A timestep or scale rounded to float16 would be another one.
        told = torch.float64 if self.dtype == torch.float64 else torch.float32
        timestep = float(self.table.nearest_t(sigma) if self.whole_timesteps else self.table.sigma_to_t(sigma))
        t = torch.full((1 if self.shares else batch,), timestep, dtype=told, device=x.device)
        guidance = None if self.guidance is None else torch.full_like(t, self.guidance)
        concat = self._join([cond.concat for cond in conds])
        rows = (1 if self.shares else batch) if concat is None else len(concat)
        scaled = (x * scale.inp).to(self.dtype).expand(rows, -1, -1, -1)
        controls = [cond.control for cond in conds if cond.control is not None]
        output = self.network(
            x=scaled if concat is None else torch.cat([scaled, concat], dim=1),
            t=t,
            context=self._contexts.of([cond.context for cond in conds], self.dtype),
            vector=self._join([cond.vector for cond in conds]),
            guidance=guidance,
            control=tuple(torch.cat(level).to(self.dtype) for level in zip(*controls, strict=True)) or None,
        )
        if not bool(output.isfinite().all()):
            raise NotFinite(
                f"the network returned NaN or infinity at sigma {sigma:.4g} in {self.dtype}; "
                "use float32, or look for damage in the checkpoint"
            )
        x0 = x * scale.skip + output.to(x.dtype) * scale.out
        if self.consistency is None:
            return x0
        c_skip, c_out = self.consistency.shares(timestep)
        return x * c_skip + x0 * c_out

    def _join(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        """One batch of the parts, None where there are none: batch mates all have them or all have not."""
        tensors = [part for part in parts if part is not None]
        if self.shares and tensors and all(part is tensors[0] for part in tensors):
            tensors = tensors[:1]
        return torch.cat(tensors).to(self.dtype) if tensors else None


def _batches(conds: Sequence[Cond]) -> list[list[int]]:
    """Indices of conds that can share a call, in order of first appearance."""
    batches: dict[tuple[torch.Size, bool, bool, bool], list[int]] = {}
    for index, cond in enumerate(conds):
        kind = (cond.context.shape, cond.vector is None, cond.concat is None, cond.control is None)
        batches.setdefault(kind, []).append(index)
    return list(batches.values())
