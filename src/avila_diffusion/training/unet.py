"""Training of a UNet jointly with its text tower: noise on latents, the network's answer, a weighted squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoint.safetensors import write_safetensors
from ..config import LatentConfig, ModelSpec, NoiseConfig, TextEncoderSpec
from ..errors import WeightMismatch
from ..models.clip import ClipTextModel
from ..models.layers import Linear
from ..models.unet import UNet
from ..models.vae import VAE
from ..sampling.tables import NoiseTable
from ..text.tokenizer import clip_tokenizer
from .architectures import DiffusionModel
from .data import Dataset, generator, order
from .initialise import create
from .latents import Latents
from .loop import compute_dtype
from .losses import add_noise, denoising_loss
from .samples import Drawing, draw
from .settings import LoopSettings, check_range
from .sheets import write_sheet
from .state import fingerprint, sample_weights

LENGTH = 77


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """min_snr: gamma of the weights, None for none. caption_dropout: share of the pictures that are trained without caption,
    for classifier-free guidance. sample_prompts, sample_guidance, sample_steps: of the sheets.
    """

    min_snr: float | None = None
    caption_dropout: float = 0.1
    sample_prompts: tuple[str, ...] = ()
    sample_guidance: float = 4.0
    sample_steps: int = 20

    def __post_init__(self) -> None:
        check_range("loss.min_snr", self.min_snr, 1e-3, 1e6)
        check_range("loss.caption_dropout", self.caption_dropout, 0.0, 1.0)
        check_range("loss.sample_guidance", self.sample_guidance, 0.0, 100.0)
        check_range("loss.sample_steps", self.sample_steps, 1, 1000)


@dataclass(frozen=True, kw_only=True)
class DiffusionLoss(DenoisingLoss):
    """prediction: what the network answers.

    text_head: weight of a second loss, for text towers that begin from nothing: a linear head tells the picture's latent,
    halved, from the tower's features behind the text. The tower so learns what words look like long before the UNet listens
    to it; the head is not exported. text_first: so many steps at the beginning are of that alone.
    """

    prediction: Literal["epsilon", "v"] = "v"
    text_head: float = 0.0
    text_first: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.text_head", self.text_head, 0.0, 1e3)
        check_range("loss.text_first", self.text_first, 0, 2**63 if self.text_head else 0)


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
        seed, channels = self.settings.seed, self.vae.config.embed_channels
        if channels != self.model.latent_channels:
            raise WeightMismatch(
                f"model.latent_channels is {self.model.latent_channels}; the latents of model.vae have {channels} channels"
            )
        self.unet = create(lambda: UNet(self.model.unet), generator(seed, 0, 2))
        self.text = create(lambda: ClipTextModel(self.model.text), generator(seed, 0, 3))
        self.head: Linear | None = None
        if self.terms.text_head:
            told = halve(self.latents.mean[:1]).numel()
            self.head = create(lambda: Linear(self.model.text_width, told), generator(seed, 0, 6))
        self.table = NoiseTable.from_config(NoiseConfig(prediction=self.terms.prediction))
        self.tokens = Captions([item.captions for item in self.data.items])
        compiled = self.settings.compile
        self._predict = torch.compile(self._forward) if compiled else self._forward
        self._tell = torch.compile(self._text_alone) if compiled else self._text_alone

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        networks: dict[str, nn.Module] = {"unet": self.unet, "text": self.text}
        if self.head is not None:
            networks["head"] = self.head
        return {f"{kind}.{name}": p for kind, network in networks.items() for name, p in network.named_parameters()}

    @cached_property
    def fingerprint(self) -> str:
        kind = ("unet", self.model, self.terms.prediction, self.terms.text_head > 0, self.settings.optimizer)
        return fingerprint(*kind, self.data.digest, sample_weights(self.vae))

    def loss(self, step: int) -> dict[str, Tensor]:
        settings = self.settings
        rng = generator(settings.seed, step)
        indices = order(len(self.data), settings.batch, step, settings.seed)
        x0 = self.latents.sample(indices, rng).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(x0.shape, generator=rng).contiguous(memory_format=torch.channels_last)
        t = spread_timesteps(settings.batch, len(self.table.sigmas), rng)
        sigma = self.table.t_to_sigma(t).float()
        tokens = self.tokens.draw(indices, self.terms.caption_dropout, rng)
        if self.head is not None and step < self.terms.text_first:
            told = self._tell(tokens, x0)
            return {"loss": told, "text": told.detach()}
        answer, told = self._predict(add_noise(x0, noise, sigma), t.float(), tokens, x0)
        denoising = denoising_loss(answer, x0, noise, sigma, self.terms.prediction, self.terms.min_snr)
        if self.head is None:
            return {"loss": denoising}
        return {"loss": denoising + self.terms.text_head * told, "denoising": denoising, "text": told}

    def _forward(self, x: Tensor, t: Tensor, tokens: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The network's answer, and the second loss, which is 0 without a head."""
        dtype = compute_dtype(self.settings)
        context = self.text(tokens, dtype=dtype).hidden
        answer: Tensor = self.unet(x.to(dtype), t, context)
        told = x.new_zeros(()) if self.head is None else tell(self.head, context, tokens, x0)
        return answer.to(x.dtype), told

    def _text_alone(self, tokens: Tensor, x0: Tensor) -> Tensor:
        assert self.head is not None
        return tell(self.head, self.text(tokens, dtype=compute_dtype(self.settings)).hidden, tokens, x0)

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


def halve(latents: Tensor) -> Tensor:
    """Latents at half their size, as the head tells them; (batch, channels · h/2 · w/2)."""
    return F.avg_pool2d(latents, 2).flatten(1)


def tell(head: Linear, context: Tensor, tokens: Tensor, x0: Tensor) -> Tensor:
    """Mean squared error of the head on the mean feature from each text's end on, where every place has seen all of it.

    Texts that were dropped say nothing, and are left out.
    """
    end = (tokens == tokens.amax(dim=1, keepdim=True)).to(context.dtype)[..., None]
    features = (context * end).sum(dim=1) / end.sum(dim=1)
    error = (head(features).to(x0.dtype) - halve(x0)).square().mean(dim=1)
    said = (tokens[:, 1] != tokens.amax(dim=1)).to(error.dtype)
    mean: Tensor = (error * said).sum() / said.sum().clamp(min=1.0)
    return mean


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
