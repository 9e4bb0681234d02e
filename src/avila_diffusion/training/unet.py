"""Training of a UNet jointly with its text tower: noise on latents, the network's answer, a weighted squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint.safetensors import write_safetensors
from ..config import LatentConfig, ModelSpec, NoiseConfig, TextEncoderSpec
from ..errors import RequestError
from ..models.clip import ClipTextModel
from ..models.unet import UNet
from ..models.vae import VAE
from ..sampling.schedules import NoiseTable
from ..text.tokenizer import clip_tokenizer
from .architectures import DiffusionModel
from .data import Dataset, generator, order
from .initialise import create
from .latents import Latents
from .loop import compute_dtype
from .losses import add_noise, min_snr_weight, target
from .samples import Drawing, draw
from .settings import LoopSettings
from .sheets import write_sheet
from .state import fingerprint

LENGTH = 77


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss:
    """prediction: what the network answers. min_snr: gamma of the weights, None for none. caption_dropout: share of the
    pictures that are trained without caption, for classifier-free guidance. sample_prompts, sample_guidance,
    sample_steps: of the sheets.
    """

    prediction: Literal["epsilon", "v"] = "v"
    min_snr: float | None = None
    caption_dropout: float = 0.1
    sample_prompts: tuple[str, ...] = ()
    sample_guidance: float = 4.0
    sample_steps: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise RequestError(f"loss.caption_dropout is {self.caption_dropout:g}; it must be from 0 to 1")


@dataclass(eq=False)
class DiffusionTask:
    """A UNet and a text tower on the latents of a data set. vae: whose latents they are. extra: metadata of the file."""

    model: DiffusionModel
    terms: DiffusionLoss
    data: Dataset
    latents: Latents
    vae: VAE
    settings: LoopSettings
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seed = self.settings.seed
        self.unet = create(lambda: UNet(self.model.unet), generator(seed, 0, 2))
        self.text = create(lambda: ClipTextModel(self.model.text), generator(seed, 0, 3))
        self.table = NoiseTable.from_config(NoiseConfig(prediction=self.terms.prediction))
        self.tokens = Captions([item.captions for item in self.data.items])
        self._predict = torch.compile(self._forward) if self.settings.compile else self._forward

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        networks = {"unet": self.unet, "text": self.text}
        return {f"{kind}.{name}": p for kind, network in networks.items() for name, p in network.named_parameters()}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint("unet", self.model, self.terms.prediction)

    def loss(self, step: int) -> dict[str, Tensor]:
        settings = self.settings
        rng = generator(settings.seed, step)
        indices = order(len(self.data), settings.batch, step, settings.seed)
        x0 = self.latents.sample(indices, rng).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(x0.shape, generator=rng).contiguous(memory_format=torch.channels_last)
        t = spread_timesteps(settings.batch, len(self.table.sigmas), rng)
        sigma = self.table.t_to_sigma(t).float()
        tokens = self.tokens.draw(indices, self.terms.caption_dropout, rng)
        answer = self._predict(add_noise(x0, noise, sigma), t.float(), tokens)
        wanted = target(x0, noise, sigma, self.terms.prediction)
        errors = (answer - wanted).square().mean(dim=(1, 2, 3))
        return {"loss": (errors * min_snr_weight(sigma, self.terms.prediction, self.terms.min_snr)).mean()}

    def _forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        dtype = compute_dtype(self.settings)
        context = self.text(tokens, dtype=dtype).hidden
        answer: Tensor = self.unet(x.to(dtype), t, context)
        return answer.to(x.dtype)

    @property
    def spec(self) -> ModelSpec:
        """As a pipeline needs it."""
        return ModelSpec(
            family="sd1",
            variant="base",
            unet=self.model.unet,
            vae=self.vae.config,
            text=(TextEncoderSpec(config=self.model.text),),
            noise=NoiseConfig(prediction=self.terms.prediction),
            latent=LatentConfig(scale=1.0),
            size=self.data.size,
        )

    @torch.no_grad()
    def sheet(self, path: Path) -> None:
        prompts = self.terms.sample_prompts or tuple(item.captions[0] for item in self.data.items[:16])
        terms, shape = self.terms, self.latents.mean.shape
        drawing = Drawing(
            self.unet, self.conditions, self.vae.decode, self.table, terms.prediction, (shape[1], shape[2], shape[3])
        )
        pictures = draw(drawing, prompts, terms.sample_guidance, terms.sample_steps)
        write_sheet(path, pictures, columns=8)

    def conditions(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        """What the UNet is told of texts, (batch, 77, width), and no vector."""
        tokens = torch.tensor([tokenize(text) for text in texts])
        return self.text(tokens, dtype=torch.float32).hidden, None

    def export(self, path: Path) -> None:
        """A single-file checkpoint in latent diffusion's layout, float16, which the ordinary loader reads."""
        tensors = {f"model.diffusion_model.{name}": p for name, p in self.unet.named_parameters()}
        tensors |= {f"first_stage_model.{name}": p for name, p in self.vae.named_parameters()}
        tensors |= {f"cond_stage_model.transformer.{name}": p for name, p in self.text.named_parameters()}
        half = {name: p.detach().half().contiguous() for name, p in tensors.items()}
        write_safetensors(path, half, self.metadata())

    def metadata(self) -> dict[str, str]:
        """What shapes cannot tell, under `avila.*` names, and the usual modelspec."""
        size = self.data.size
        return {
            "avila.family": "sd1",
            "avila.prediction": self.terms.prediction,
            "avila.size": str(size),
            "avila.fixed_size": "true",  # it has seen no other
            "avila.latent_scale": "1.0",
            "avila.unet_head_channels": str(self.model.head_channels),
            "avila.text_heads": str(self.model.text.heads),
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stable-diffusion-v1",
            "modelspec.implementation": "avila_diffusion",
            "modelspec.prediction_type": self.terms.prediction,
            "modelspec.resolution": f"{size}x{size}",
            **self.extra,
        }


class Captions:
    """The captions of a data set as token ids, and which of them a step sees."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self._empty = tokenize("")
        self._tokens = [[tokenize(text) for text in texts] for texts in captions]

    def draw(self, indices: Sequence[int], dropout: float, rng: torch.Generator) -> Tensor:
        """(batch, 77): one caption of each item, the empty one for a share of `dropout`."""
        chosen, dropped = torch.rand(2, len(indices), generator=rng).tolist()
        rows = []
        for index, which, lost in zip(indices, chosen, dropped, strict=True):
            options = self._tokens[index]
            rows.append(self._empty if lost < dropout else options[int(which * len(options))])
        return torch.tensor(rows)


def tokenize(text: str) -> list[int]:
    """77 ids of one chunk; longer captions are cut."""
    tokenizer: Any = clip_tokenizer()
    ids: list[int] = tokenizer.pad_chunk(tokenizer.encode(text)[: LENGTH - 2], LENGTH)
    return ids


def spread_timesteps(batch: int, steps: int, rng: torch.Generator) -> Tensor:
    """Fractional timesteps from 0 to steps - 1, float64: one in each `batch`-th part of the range, in random order.

    Uniform each for itself, but spread evenly together, which takes noise out of the loss (Kingma et al. 2021).
    """
    places = (torch.arange(batch) + torch.rand(batch, generator=rng, dtype=torch.float64)) / batch
    return places[torch.randperm(batch, generator=rng)] * (steps - 1)
