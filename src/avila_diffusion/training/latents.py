"""Pictures through a finished autoencoder once, kept on disk; and that autoencoder with its latents brought to N(0, 1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.load import build
from ..checkpoint.safetensors import TensorFile, write_safetensors
from ..checkpoint.shapes import read_vae_config
from ..errors import FileProblem, WeightMismatch
from ..models.vae import VAE
from .data import Dataset
from .state import fingerprint, sample_weights

SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True, eq=False)
class Latents:
    """Means and deviations of the encoder's answers, (items, channels, h, w) each."""

    mean: Tensor
    deviation: Tensor

    def sample(self, indices: list[int], rng: torch.Generator) -> Tensor:
        """One draw for each of `indices`."""
        mean = self.mean[indices]
        return mean + self.deviation[indices] * torch.randn(mean.shape, generator=rng)


def read_vae(path: Path) -> VAE:
    """An autoencoder under its own names, as training writes it, in float32. Raises FileProblem for other files."""
    with TensorFile(path, mapped=False) as file:
        if "decoder.conv_in.weight" not in file.names:
            what = (
                "a whole checkpoint" if any("first_stage_model." in name for name in file.names) else "no autoencoder"
            )
            raise WeightMismatch(f"{path} is {what}; expected an autoencoder alone, as avila train vae writes it")
        config = read_vae_config({name: entry.shape for name, entry in file.header.entries.items()})
        vae = build(lambda: VAE(config))
        names = dict(vae.named_parameters())
        if set(names) != set(file.names):
            raise WeightMismatch(
                f"{path} is not an autoencoder alone; expected encoder., decoder. and quant_conv. tensors"
            )
        vae.load_state_dict({name: file.tensor(name).float() for name in names}, assign=True)
    return vae


@torch.no_grad()
def encode(
    vae: VAE, data: Dataset, cache: Path, batch: int = 32, say: Callable[[str], None] = lambda line: None
) -> Latents:
    """The latents of every picture, from `cache` where it holds those of this autoencoder and these pictures.

    say: is told now and then how far it is.
    """
    stamps = [(item.path.as_posix(), item.path.stat().st_size, item.path.stat().st_mtime_ns) for item in data.items]
    known = fingerprint(sample_weights(vae), data.size, stamps)
    if cache.is_file():
        with TensorFile(cache, mapped=False) as file:
            if file.header.metadata.get("fingerprint") == known:
                return Latents(file.tensor("mean"), file.tensor("deviation"))
    means, deviations = [], []
    spoke = time.monotonic()
    for first in range(0, len(data), batch):
        if time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
            spoke = time.monotonic()
            say(f"encoded {first:,} of {len(data):,} pictures")
        found = vae.encode(data.pictures(range(first, min(first + batch, len(data)))))
        means.append(found.mean)
        deviations.append((0.5 * found.log_variance).exp())
    latents = Latents(torch.cat(means).contiguous(), torch.cat(deviations).contiguous())
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(cache, {"mean": latents.mean, "deviation": latents.deviation}, {"fingerprint": known})
    return latents


@torch.no_grad()
def standardise(vae: VAE, latents: Latents) -> Latents:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions around the latent, exactly.

    The autoencoder's latents then have mean 0 and deviation 1 over the data, which diffusion wants, and whoever loads
    it needs no numbers beside the weights. Returns the same latents in the new units. Raises FileProblem for an
    autoencoder without those convolutions.
    """
    if vae.quant_conv is None or vae.post_quant_conv is None or not vae.config.double_z:
        raise FileProblem("this autoencoder has no quant_conv; expected one that training wrote")
    count = vae.config.embed_channels
    variance = latents.mean.var(dim=(0, 2, 3)) + latents.deviation.square().mean(dim=(0, 2, 3))
    mean, std = latents.mean.mean(dim=(0, 2, 3)), variance.sqrt()
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    quant.weight[:count].div_(std[:, None, None, None])
    quant.bias[:count] = (quant.bias[:count] - mean) / std
    quant.bias[count:] -= 2 * std.log()
    post.bias.add_(torch.einsum("oi,i->o", post.weight[:, :, 0, 0], mean))
    post.weight.mul_(std[None, :, None, None])
    shape = (1, count, 1, 1)
    return Latents((latents.mean - mean.view(shape)) / std.view(shape), latents.deviation / std.view(shape))
