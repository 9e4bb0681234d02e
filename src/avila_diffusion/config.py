"""What a network or a model is, as frozen data: the configs that networks are built from, and the table of families.

A config is read off the tensor shapes of a file (`checkpoint.detect`); the families below only supply what shapes
cannot tell. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Prediction = Literal["epsilon", "v", "edm"]
Variant = Literal["base", "inpainting", "pix2pix", "depth"]

NEEDS = {"pix2pix": "image", "depth": "depth"}
"""Variants of models that cannot do without a picture, and the field that it is given in."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A SpatialTransformer inside one UNet block.

    depth: number of transformer blocks. heads: attention heads; the head size is channels / heads.
    self_attention: False where the first attention of a block also looks at the text (SDXS level 0).
    """

    depth: int
    heads: int
    self_attention: bool = True


@dataclass(frozen=True, kw_only=True)
class UNetBlockConfig:
    """One entry of `input_blocks` or `output_blocks`, or the middle: a residual block, attention or not, a resize or not.

    A pure downsampling entry has `residual=False`. For output blocks `in_channels` counts the skip connection too.
    """

    in_channels: int
    out_channels: int
    residual: bool = True
    transformer: TransformerConfig | None = None
    resample: Literal["none", "down", "up"] = "none"


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The UNet as a list of rows, in the order data flows.

    middle is a tuple of at most one row: SD's middle is residual, transformer, residual; with no transformer it is
    one residual block alone (SSD-1B, Vega), and some pruned kin have no middle at all.
    adm_channels: width of the vector of pooled text and sizes (SDXL 2816, refiner 2560), None where there is none.
    guidance_channels: width of the guidance embedding of LCM-type UNets (`cond_proj`), None where there is none.
    linear_projection: proj_in/proj_out of the transformers are linear (SD2, SDXL) and not 1x1 convolutions (SD1).
    """

    in_channels: int
    out_channels: int
    model_channels: int
    embed_channels: int
    context_channels: int
    input_blocks: tuple[UNetBlockConfig, ...]
    middle: UNetBlockConfig | None
    output_blocks: tuple[UNetBlockConfig, ...]
    linear_projection: bool = False
    adm_channels: int | None = None
    guidance_channels: int | None = None


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The autoencoder. Channel tuples run from full resolution to the latent's; `*_blocks` are residual blocks a level.

    decoder_channels lists `decoder.up.0 …` likewise, so its last entry is next to the latent.
    quant: the 1x1 convolutions quant_conv / post_quant_conv exist; embed_channels is the width between them.
    """

    image_channels: int = 3
    latent_channels: int = 4
    embed_channels: int = 4
    encoder_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_channels: tuple[int, ...] = (128, 256, 512, 512)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    encoder_attention: bool = True
    decoder_attention: bool = True
    quant: bool = True
    double_z: bool = True

    @property
    def scale(self) -> int:
        """Pixels along one side of a latent cell."""
        return int(2 ** (len(self.decoder_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class TinyVAEConfig:
    """A tiny autoencoder (TAESD), `channels` wide throughout.

    encoder_blocks: residual blocks of each level, from the picture to the latent; () where there is no encoder.
    decoder_blocks: likewise, from the latent to the picture.
    """

    image_channels: int = 3
    latent_channels: int = 4
    channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    @property
    def embed_channels(self) -> int:
        """Channels of what is decoded."""
        return self.latent_channels

    @property
    def scale(self) -> int:
        """Pixels along one side of a latent cell."""
        return int(2 ** (len(self.decoder_blocks) - 1))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A CLIP text tower. `kind` chooses the class, by the names in the file: transformers' or OpenCLIP's.

    projection: width of the pooled projection, None where there is none.
    """

    kind: Literal["clip", "open_clip"]
    vocabulary: int
    width: int
    layers: int
    heads: int
    mlp: int
    context_length: int = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextEncoderSpec:
    """A text tower and what the model takes from it.

    skip: 1 for the last layer's hidden state, 2 for the penultimate. final_norm: whether the final norm follows.
    clip_skip: whether the user's clip skip applies. pooled: its projected pooled vector conditions the UNet.
    pad: the token after the end token; the end token itself (SD1, CLIP-L) or 0 (OpenCLIP).
    """

    config: TextConfig
    skip: int = 1
    final_norm: bool = True
    clip_skip: bool = True
    pooled: bool = False
    pad: int = 49407


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """The training noise, and what the network predicts of it.

    Discrete: 1,000 betas, linear in their square root, or the `alphas_cumprod` that a file brings. continuous: sigmas
    from edm_sigma_min to edm_sigma_max instead (Karras et al. 2022), with sigma_data.
    """

    prediction: Prediction = "epsilon"
    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    zero_terminal_snr: bool = False
    alphas_cumprod: tuple[float, ...] | None = field(default=None, repr=False)
    continuous: bool = False
    sigma_data: float = 0.5
    edm_sigma_min: float = 0.002
    edm_sigma_max: float = 120.0


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """How VAE latents z become the UNet's: x = (z - mean) / std * scale; mean and std per channel, where a file has them."""

    scale: float = 0.18215
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def of_tiny(self, scale: float) -> LatentConfig:
        """The same for a tiny autoencoder, whose latents are z * scale, `scale` being its family's: most often 1."""
        if self.mean is None or self.std is None:
            return LatentConfig(scale=self.scale / scale)
        mean, std = (tuple(value * scale for value in values) for values in (self.mean, self.std))
        return LatentConfig(scale=self.scale, mean=mean, std=std)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model's file recommends where a request leaves it open; None where it says nothing.

    size: width and height of a picture, in pixels. sampler: may name its schedule too, as "DPM++ 2M Karras" does.
    """

    size: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None

    @property
    def recommended(self) -> dict[str, Any]:
        """What is said, as fields of a request, but for the size, which the engine fills in."""
        values = {name: getattr(self, name) for name in ("steps", "guidance_scale", "sampler")}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that a pipeline needs to know of a model. One pipeline serves all; a family is another ModelSpec.

    size: width and height it was trained at, in pixels. fixed_size: it can do no other; pictures are drawn about that size
    and resized. adm: what the vector conditioning holds besides pooled text; size_channels: width of the embedding of
    each of its numbers. latent: of this `vae`, so that it is another with a tiny one.
    """

    family: str
    variant: Variant
    unet: UNetConfig
    vae: VAEConfig | TinyVAEConfig
    text: tuple[TextEncoderSpec, ...]
    noise: NoiseConfig
    latent: LatentConfig
    size: int
    adm: Literal["none", "sizes", "aesthetic"] = "none"
    size_channels: int = 256
    fixed_size: bool = False
    defaults: Defaults = Defaults()

    @property
    def tiny_latent(self) -> LatentConfig:
        """How the latents of a tiny autoencoder of the family become the UNet's, whichever `vae` there is."""
        tiny = isinstance(self.vae, TinyVAEConfig)
        return self.latent if tiny else self.latent.of_tiny(FAMILIES[self.family].latent_scale)

    @property
    def latent_space(self) -> LatentConfig:
        """`latent` as with the family's large autoencoder, where that is clear: it names the space that the UNet works in."""
        if isinstance(self.vae, TinyVAEConfig) and self.latent == LatentConfig(scale=1.0):
            return LatentConfig(scale=FAMILIES[self.family].latent_scale)
        return self.latent


@dataclass(frozen=True, kw_only=True)
class Family:
    """What shapes cannot tell. `heads`/`head_channels`: the UNet's attention heads, by number or by size."""

    name: str
    title: str
    size: int
    latent_scale: float
    heads: int | None = None
    head_channels: int | None = None
    adm: Literal["none", "sizes", "aesthetic"] = "none"


FAMILIES: dict[str, Family] = {
    "sd1": Family(name="sd1", title="Stable Diffusion 1.x", size=512, latent_scale=0.18215, heads=8),
    "sd2": Family(name="sd2", title="Stable Diffusion 2.x", size=512, latent_scale=0.18215, head_channels=64),
    "sdxl": Family(
        name="sdxl", title="Stable Diffusion XL", size=1024, latent_scale=0.13025, head_channels=64, adm="sizes"
    ),
    "sdxl_refiner": Family(
        name="sdxl_refiner",
        title="Stable Diffusion XL refiner",
        size=1024,
        latent_scale=0.13025,
        head_channels=64,
        adm="aesthetic",
    ),
}

VARIANT_OF_CHANNELS: dict[int, Variant] = {4: "base", 9: "inpainting", 8: "pix2pix", 5: "depth"}
"""UNet input channels → variant: latent 4, + masked latent 4 and mask 1, + picture latent 4, + depth 1."""
