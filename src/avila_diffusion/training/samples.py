"""Sample sheets during training: the pipeline's own sampler, several pictures at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.unet import UNet
from ..sampling.denoiser import scaling
from ..sampling.guidance import Call, Denoised
from ..sampling.names import resolve_sampler, resolve_schedule
from ..sampling.samplers import sample, start
from ..sampling.schedules import NoiseTable, sampler_sigmas
from .data import generator
from .losses import Target

BATCH = 8
Conditions = Callable[[Sequence[str]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is needed to draw. conditions: texts → context and vector. decode: latents → pictures. shape: of a latent."""

    unet: UNet
    conditions: Conditions
    decode: Callable[[Tensor], Tensor]
    table: NoiseTable
    prediction: Target
    shape: tuple[int, int, int]


@torch.no_grad()
def draw(drawing: Drawing, prompts: Sequence[str], guidance: float, steps: int) -> Tensor:
    """Pictures of `prompts`, (count, 3, height, width) in -1 to 1 and a little beyond; of seed 0, 1, 2 … each."""
    firsts = range(0, len(prompts), BATCH)
    return torch.cat([_draw(drawing, prompts[first : first + BATCH], first, guidance, steps) for first in firsts])


def _draw(drawing: Drawing, prompts: Sequence[str], first: int, guidance: float, steps: int) -> Tensor:
    sampler, _ = resolve_sampler("DPM++ 2M")
    sigmas = sampler_sigmas(sampler, resolve_schedule("Karras"), steps, drawing.table)
    count = len(prompts)
    context, vector = drawing.conditions([*prompts, *[""] * count])
    noise = torch.stack([torch.randn(drawing.shape, generator=generator(first + k, 0, 4)) for k in range(count)])

    def denoise(call: Call) -> Denoised:
        scale = scaling(drawing.prediction, call.sigma)
        x = torch.cat([call.x, call.x])
        t = torch.full((2 * count,), float(drawing.table.sigma_to_t(call.sigma)))
        answer = drawing.unet((x * scale.inp).to(context.dtype), t, context, vector=vector).to(x.dtype)
        cond, uncond = (x * scale.skip + answer * scale.out).chunk(2)
        return Denoised(uncond + guidance * (cond - uncond))

    run = sample(sampler, start(sampler, noise, sigmas), sigmas, lambda sigma, sigma_next: torch.zeros(()))
    call = next(run)
    while True:
        try:
            call = run.send(denoise(call))
        except StopIteration as end:
            return drawing.decode(end.value)
