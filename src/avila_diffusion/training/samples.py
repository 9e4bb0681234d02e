"""Sample sheets during training: the pipeline's own sampler, several pictures at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..sampling.denoiser import scaling
from ..sampling.schedules import sampler_sigmas
from ..sampling.names import resolve_sampler, resolve_schedule
from ..sampling.guidance import Call, Denoised
from ..sampling.samplers import sample, start
from .data import generator

if TYPE_CHECKING:
    from .unet import DiffusionTask

BATCH = 16


def draw(task: DiffusionTask, prompts: Sequence[str], guidance: float, steps: int) -> Tensor:
    """Pictures of `prompts`, (count, 3, size, size) in -1 to 1 and a little beyond; seed 0, 1, 2 … each."""
    made = [_draw(task, prompts[first : first + BATCH], first, guidance, steps) for first in range(0, len(prompts), BATCH)]
    return torch.cat(made)


def _draw(task: DiffusionTask, prompts: Sequence[str], first: int, guidance: float, steps: int) -> Tensor:
    from .unet import tokenize

    sampler, _ = resolve_sampler("DPM++ 2M")
    sigmas = sampler_sigmas(sampler, resolve_schedule("Karras"), steps, task.table)
    tokens = torch.tensor([tokenize(text) for text in ("", *prompts)])
    context = task.text(tokens, dtype=torch.float32).hidden
    shape = task.latents.mean.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=generator(first + k, 0, 4)) for k in range(len(prompts))])
    both = torch.cat([context[1:], context[:1].expand(len(prompts), -1, -1)])

    def x0_of(call: Call) -> Tensor:
        scale = scaling(task.terms.prediction, call.sigma)
        t = torch.full((len(both),), float(task.table.sigma_to_t(call.sigma)))
        x = call.x.repeat(2, 1, 1, 1)
        cond, uncond = (x * scale.skip + task.unet(x * scale.inp, t, both) * scale.out).chunk(2)
        guided: Tensor = uncond + guidance * (cond - uncond)
        return guided

    run = sample(sampler, start(sampler, noise, sigmas), sigmas, lambda *_: torch.zeros(()), eta=None)
    call = next(run)
    try:
        while True:
            call = run.send(Denoised(x0_of(call)))
    except StopIteration as end:
        latent: Tensor = end.value
    return task.vae.decode(latent)
