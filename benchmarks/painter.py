"""The engine's pictures made many at a time, for benchmarks: its samplers in lock-step, their model calls as one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from avila_diffusion import AvilaDiffusion
from avila_diffusion.checkpoint.load import Model, load_model
from avila_diffusion.device import Policy, choose_policy
from avila_diffusion.pipeline.latents import decode, to_pixels
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import resolve_sampler, resolve_schedule
from avila_diffusion.sampling.noise import initial_noise, noise_source, step_noise
from avila_diffusion.sampling.samplers import sample, start
from avila_diffusion.sampling.samplers.run import Run
from avila_diffusion.sampling.schedules import NoiseTable, sampler_sigmas
from avila_diffusion.text.conditioner import Conditioner

from .features import Pixels

BATCH = 32
"""Pictures that are made together."""


@dataclass(frozen=True)
class Settings:
    steps: int
    guidance: float
    sampler: str
    seed: int


@dataclass(frozen=True, eq=False)
class Painter:
    """A model, and its pictures, square and of its own size."""

    path: Path
    model: Model
    policy: Policy

    @classmethod
    def load(cls, path: Path) -> Painter:
        return cls(path, load_model(path), choose_policy("cpu"))

    def paint(
        self, prompts: Sequence[str], settings: Settings, title: str, seeds: Sequence[int] | None = None
    ) -> Pixels:
        """(count, size, size, 3); picture k has seed settings.seed + k, where no others are given."""
        seeds = [settings.seed + index for index in range(len(prompts))] if seeds is None else seeds
        made: list[Pixels] = []
        with tqdm(total=len(prompts), desc=title, file=sys.stderr, unit="picture") as bar:
            for begin in range(0, len(prompts), BATCH):
                chosen = slice(begin, begin + BATCH)
                made += self._paint_batch(prompts[chosen], seeds[chosen], settings)
                bar.update(len(made) - bar.n)
        return np.stack(made)

    @torch.no_grad()
    def _paint_batch(self, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> list[Pixels]:
        spec, scale = self.model.spec, settings.guidance
        request = GenerateRequest(
            prompt="", steps=settings.steps, guidance_scale=scale, sampler=settings.sampler, seed=0
        ).resolved(spec.size)
        sampler, _ = resolve_sampler(request.sampler)
        sigmas = sampler_sigmas(sampler, resolve_schedule(request.schedule), request.steps, self._table)
        side = spec.size // spec.vae.scale
        runs: list[Run] = []
        for seed in seeds:
            source = noise_source(request.rng or "nv", seed)
            noise = initial_noise(source, (spec.vae.latent_channels, side, side)).to(self.policy.latent)
            x = start(sampler, noise, sigmas)
            runs.append(sample(sampler, x, sigmas, step_noise(source, x)))
        conds = [self._encode(prompt, False) for prompt in prompts]
        unconds = [] if scale == 1 else [self._encode("", True)] * len(prompts)
        denoiser = Denoiser(self.model.unet, self._table, spec.noise.prediction, dtype=self.policy.unet)

        def answer(asked: Sequence[Call]) -> list[Denoised]:
            # One generator per picture, so all stand at the same sigma; the denoiser's own arithmetic on one batch.
            x = torch.cat([call.x for call in asked])
            both = torch.cat([x, x]) if unconds else x
            x0 = denoiser._predict_batch(both, asked[0].sigma, [*conds, *unconds])
            if unconds:
                cond, base = x0.chunk(2)
                x0 = base + scale * (cond - base)
            return [Denoised(one) for one in torch.split(x0, 1)]

        latents = torch.cat(in_step(runs, answer))
        pictures = decode(self.model.vae, latents, spec.latent, self.policy.vae)
        return [to_pixels(picture) for picture in torch.split(pictures, 1)]

    @cached_property
    def _table(self) -> NoiseTable:
        return NoiseTable.from_config(self.model.spec.noise)

    def _encode(self, prompt: str, negative: bool) -> Cond:
        size = self.model.spec.size
        conditioner = Conditioner(self.model.spec, self.model.text, self.policy.device, self.policy.text)
        encoded = conditioner.encode(prompt, width=size, height=size, negative=negative)
        return Cond(encoded.context.to(self.policy.unet), encoded.vector)

    @torch.no_grad()
    def reconstruct(self, pixels: Pixels, title: str) -> Pixels:
        """Pictures encoded, the likeliest latent taken, decoded, and made 8-bit as the engine does."""
        made: list[Pixels] = []
        for begin in tqdm(range(0, len(pixels), BATCH), desc=title, file=sys.stderr):
            x = to_unit(pixels[begin : begin + BATCH]).to(self.policy.vae)
            decoded = self.model.vae.decode(self.model.vae.encode(x).mode)
            made += [to_pixels(picture) for picture in torch.split(decoded, 1)]
        return np.stack(made)

    def differ_from_engine(self, prompts: Sequence[str], settings: Settings) -> dict[str, float]:
        """Levels of 255 that these pictures are away from the engine's own. Raises where that is more than rounding."""
        own = self.paint(prompts, settings, "as the engine").astype(int)
        engine = AvilaDiffusion.with_model(self.path, device="cpu")
        made = []
        for index, prompt in enumerate(prompts):
            result = engine.text_to_image(
                prompt,
                width=self.model.spec.size,
                height=self.model.spec.size,
                seed=settings.seed + index,
                steps=settings.steps,
                guidance_scale=settings.guidance,
                sampler=settings.sampler,
            )
            made.append(result[0].pixels)
        difference = np.abs(own - np.stack(made))
        if difference.max() > 3 or difference.mean() > 0.05:
            raise AssertionError(
                f"pictures made together differ from the engine's by up to {difference.max()} levels, "
                f"{difference.mean():.3f} on average; at most 3 and 0.05 are rounding"
            )
        return {"greatest": float(difference.max()), "mean": float(difference.mean())}


def in_step(runs: Sequence[Run], answer: Callable[[Sequence[Call]], list[Denoised]]) -> list[Tensor]:
    """Drive samplers that ask for the same levels together, to their finished latents."""
    asked: list[Call] = [next(run) for run in runs]
    while True:
        assert len({(call.sigma, call.step) for call in asked}) == 1
        replies, asked = answer(asked), []
        finished: list[Tensor] = []
        for run, reply in zip(runs, replies, strict=True):
            try:
                asked.append(run.send(reply))
            except StopIteration as end:
                finished.append(end.value)
        if finished:
            assert not asked
            return finished


def to_unit(pixels: Pixels) -> Tensor:
    """(count, h, w, 3) of 0 to 255 → (count, 3, h, w) of -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
