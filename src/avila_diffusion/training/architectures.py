"""Configs of networks that are trained from nothing, from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import TextConfig, TransformerConfig, UNetBlockConfig, UNetConfig
from ..errors import RequestError
from .settings import check_range

TOKENS = 49408


@dataclass(frozen=True, kw_only=True)
class DiffusionModel:
    """A UNet and its text tower. channels: from the latent's resolution down, each level at half the size.

    blocks: residual blocks a level on the way down, one more on the way up. transformers: transformer blocks behind each
    residual block, a number for each level; the middle has as many as the last. head_channels: width of an attention
    head in the UNet.
    """

    channels: tuple[int, ...]
    transformers: tuple[int, ...]
    blocks: int = 1
    head_channels: int = 32
    latent_channels: int = 4
    text_width: int = 128
    text_layers: int = 4

    def __post_init__(self) -> None:
        for name, most in (("blocks", 16), ("head_channels", 4096), ("latent_channels", 64), ("text_layers", 64)):
            check_range(f"model.{name}", getattr(self, name), 1, most)
        if not self.channels or any(width < 32 or width % 32 for width in self.channels):
            raise RequestError(f"model.channels are {list(self.channels)}; each must be a multiple of 32")
        if len(self.transformers) != len(self.channels) or min(self.transformers) < 0:
            raise RequestError(f"model.transformers are {list(self.transformers)}; expected a number for each level")
        if any(width % self.head_channels for width in self.channels):
            raise RequestError(f"model.head_channels {self.head_channels} does not divide {list(self.channels)}")
        if self.text_width % 64 or self.text_width < 64:
            raise RequestError(f"model.text_width is {self.text_width}; it must be a multiple of 64")
        if not any(self.transformers):
            raise RequestError("model.transformers are all 0; the text would have no way into the picture")

    @property
    def text(self) -> TextConfig:
        """CLIP's tower at that width, its heads 64 wide."""
        return TextConfig(
            kind="clip",
            vocabulary=TOKENS,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_width // 64,
            mlp=4 * self.text_width,
        )

    @property
    def unet(self) -> UNetConfig:
        """The rows, as latent diffusion numbers them."""
        first = self.channels[0]
        rows = [UNetBlockConfig(in_channels=self.latent_channels, out_channels=first, residual=False)]
        for level, width in enumerate(self.channels):
            if level:
                above = self.channels[level - 1]
                rows.append(UNetBlockConfig(in_channels=above, out_channels=above, residual=False, resample="down"))
            for _ in range(self.blocks):
                rows.append(self._row(rows[-1].out_channels, width, level))
        skips = [row.out_channels for row in rows]
        last = len(self.channels) - 1
        middle = self._row(self.channels[-1], self.channels[-1], last)
        outputs, channels = [], self.channels[-1]
        for level in range(last, -1, -1):
            for number in range(self.blocks + 1):
                up = level > 0 and number == self.blocks
                outputs.append(self._row(channels + skips.pop(), self.channels[level], level, up))
                channels = self.channels[level]
        return UNetConfig(
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            model_channels=first,
            embed_channels=4 * first,
            context_channels=self.text_width,
            input_blocks=tuple(rows),
            middle=middle,
            output_blocks=tuple(outputs),
            linear_projection=True,
        )

    def _row(self, given: int, width: int, level: int, up: bool = False) -> UNetBlockConfig:
        depth = self.transformers[level]
        transformer = TransformerConfig(depth=depth, heads=width // self.head_channels) if depth else None
        return UNetBlockConfig(
            in_channels=given, out_channels=width, transformer=transformer, resample="up" if up else "none"
        )
