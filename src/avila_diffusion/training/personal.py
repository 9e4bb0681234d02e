"""What LoRA and textual inversion share: a finished checkpoint that stays as it is, and the loss on pictures of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checkpoint.load import Model
from ..errors import RequestError, Unsupported
from ..pipeline.latents import from_vae, to_vae
from ..sampling.tables import NoiseTable
from ..text.conditioner import Conditioner, Conditioning
from ..text.tokenizer import clip_tokenizer
from .data import Dataset, generator, order
from .latents import Latents
from .loop import compute_dtype
from .losses import Target, add_noise, denoising_loss
from .samples import Drawing, draw
from .settings import LoopSettings
from .state import sample_file
from .unet import LENGTH, DenoisingLoss, spread_timesteps


@dataclass(eq=False)
class Personal:
    """A checkpoint's networks on a small data set. read: text → token ids; text_trained: features change every step."""

    model: Model
    terms: DenoisingLoss
    data: Dataset
    settings: LoopSettings
    text_trained: bool = False
    read: Callable[[str], list[int]] = field(default_factory=lambda: clip_tokenizer().encode)

    def __post_init__(self) -> None:
        spec = self.model.spec
        if spec.variant != "base" or spec.noise.prediction == "edm" or spec.unet.guidance_channels is not None:
            raise Unsupported(
                f"{self.model.path.name} is a {spec.variant} model that predicts {spec.noise.prediction}; training is for base "
                "models that predict epsilon or v"
            )
        if self.settings.compile:
            raise Unsupported("train.compile is for vae and unet; leave it out")
        if self.data.size < 64 or (spec.fixed_size and self.data.size != spec.size):
            wanted = (
                f"{spec.size}, the only size that {self.model.path.name} draws" if spec.fixed_size else "at least 64"
            )
            raise RequestError(f"data.size is {self.data.size}; it must be {wanted}")
        self.prediction: Target = "v" if spec.noise.prediction == "v" else "epsilon"
        self.table = NoiseTable.from_config(spec.noise)
        self._known: dict[str, Conditioning] = {}
        self._latents: Latents | None = None

    @property
    def digest(self) -> str:
        """Of the checkpoint's bytes and of the data."""
        return sample_file(self.model.path) + self.data.digest

    def loss(self, step: int) -> dict[str, Tensor]:
        """The denoising loss of one batch; a function of step and weights."""
        settings, latents = self.settings, self.latents
        rng = generator(settings.seed, step)
        indices = order(len(self.data), settings.batch, step, settings.seed)
        x0 = from_vae(latents.sample(indices, rng), self.model.spec.latent)
        noise = torch.randn(x0.shape, generator=rng)
        t = spread_timesteps(settings.batch, len(self.table.sigmas), rng)
        sigma = self.table.t_to_sigma(t).to(x0.dtype)
        chosen, dropped = torch.rand(2, len(indices), generator=rng).tolist()
        texts = [
            ""
            if lost < self.terms.caption_dropout
            else (options := self.data.items[i].captions)[int(which * len(options))]
            for i, which, lost in zip(indices, chosen, dropped, strict=True)
        ]
        context, vector = self.conditions(texts)
        dtype = compute_dtype(settings)
        x = add_noise(x0, noise, sigma).to(dtype)
        answer = self.model.unet(x, t.to(x0.dtype), context, vector=vector).to(x0.dtype)
        return {"loss": denoising_loss(answer, x0, noise, sigma, self.prediction, self.terms.min_snr)}

    @property
    def latents(self) -> Latents:
        """Of every picture, in the autoencoder's units, made when first asked for; small sets need no file."""
        if self._latents is None:
            with torch.no_grad():
                found = [self.model.vae.encode(self.data.pictures([index])) for index in range(len(self.data))]
            means = torch.cat([latents.mean for latents in found])
            self._latents = Latents(means, torch.cat([(0.5 * latents.log_variance).exp() for latents in found]))
        return self._latents

    def conditions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """context (batch, 77, width) and, for SDXL, vector (batch, adm) of captions, cut to one chunk each."""
        found = [self._encode(text) for text in texts]
        vectors = [cond.vector for cond in found if cond.vector is not None]
        return torch.cat([cond.context for cond in found]), torch.cat(vectors) if vectors else None

    def _encode(self, text: str) -> Conditioning:
        if text in self._known:
            return self._known[text]
        conditioner = Conditioner(
            self.model.spec, self.model.text, torch.device("cpu"), compute_dtype(self.settings), read=self._cut
        )
        size = self.data.size
        if self.text_trained and torch.is_grad_enabled():
            return conditioner.encode(text, width=size, height=size)
        with torch.no_grad():
            found = conditioner.encode(text, width=size, height=size)
        if not self.text_trained:
            self._known[text] = found
        return found

    def _cut(self, text: str) -> list[int]:
        return self.read(text)[: LENGTH - 2]

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """What sheets show: the prompts asked for, or the first captions."""
        return self.terms.sample_prompts or tuple(item.captions[0] for item in self.data.items[:8])

    def draw(self, prompts: Sequence[str]) -> Tensor:
        """Pictures of `prompts`, (count, 3, size, size)."""
        spec, terms = self.model.spec, self.terms
        side = self.data.size // spec.vae.scale

        def decode(latent: Tensor) -> Tensor:
            return self.model.vae.decode(to_vae(latent, spec.latent))

        drawing = Drawing(
            self.model.unet,
            self.conditions,
            decode,
            self.table,
            self.prediction,
            (spec.vae.latent_channels, side, side),
        )
        return draw(drawing, prompts, terms.sample_guidance, terms.sample_steps)
