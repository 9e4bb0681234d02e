"""Optimizers as functions on the state of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from .settings import LoopSettings
from .state import Trained

MUON_MOMENTUM = 0.95
TABLES = re.compile(
    r"token_embedding|position_embedding|^unet\.(input_blocks\.0\.0|out\.2)\.|conv_in|conv_out|^head\.|^emb_params$|^clip_[lg]$"
)
"""Names of what muon leaves to adamw: tables of vectors, and the layers at a network's ends."""


def optimize(trained: Trained, gradients: Mapping[str, Tensor], step: int, settings: LoopSettings) -> None:
    """One step, from 0, in place, of the weights that have a gradient; in their memory layout."""
    turned = {name for name, g in gradients.items() if settings.optimizer == "muon" and is_matrix(name, g)}
    adamw(trained, {name: grad for name, grad in gradients.items() if name not in turned}, step, settings)
    muon(trained, {name: grad for name, grad in gradients.items() if name in turned}, step, settings)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether muon's rule is for it: a matrix, or a kernel as one of (out, in · height · width), inside a network."""
    return parameter.dim() > 1 and not TABLES.search(name)


def adamw(trained: Trained, gradients: Mapping[str, Tensor], step: int, settings: LoopSettings) -> None:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); vectors are not decayed."""
    for matrices, decay in ((True, settings.weight_decay), (False, 0.0)):
        names = [name for name, gradient in gradients.items() if (gradient.dim() > 1) is matrices]
        if names:
            torch_adamw(
                [trained.weight[name] for name in names],
                [gradients[name] for name in names],
                [trained.moment[name] for name in names],
                [trained.square[name] for name in names],
                [],
                [trained.count[name] for name in names],  # each is raised by 1
                fused=True,
                amsgrad=False,
                beta1=settings.betas[0],
                beta2=settings.betas[1],
                lr=settings.rate(step),
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
            )


@torch.no_grad()
def muon(trained: Trained, gradients: Mapping[str, Tensor], step: int, settings: LoopSettings) -> None:
    """Momentum, orthogonalised (Jordan et al. 2024); scaled to the size of Adam's steps (Liu et al. 2025, 2502.16982)."""
    rate = settings.rate(step)
    shapes: dict[tuple[int, int], list[str]] = {}
    for name, gradient in gradients.items():
        shapes.setdefault((len(gradient), gradient[0].numel()), []).append(name)
    for (rows, columns), names in shapes.items():
        updates = []
        for name in names:
            moment = trained.moment[name].lerp_(gradients[name], 1 - MUON_MOMENTUM)
            updates.append(gradients[name].lerp(moment, MUON_MOMENTUM).reshape(rows, columns))  # Nesterov's look ahead
        scale = 0.2 * math.sqrt(max(rows, columns))
        for name, update in zip(names, orthogonalise(torch.stack(updates)), strict=True):
            weight = trained.weight[name]
            weight.mul_(1 - rate * settings.weight_decay).sub_(update.view(weight.shape), alpha=rate * scale)


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Matrices (batch, m, n) with their singular values brought near 1, by Newton-Schulz iterations of fifth order.

    The coefficients (Jordan et al. 2024) rise fast from 0 and leave values between 0.7 and 1.2: near enough for a step,
    and in bfloat16.
    """
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    turned: Tensor = (x if wide else x.mT).to(matrices.dtype)
    return turned
