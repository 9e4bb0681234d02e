"""Strings → what the UNet is conditioned on: the text towers' features, and for SDXL the pooled text and the sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import ModelSpec, TextEncoderSpec
from ..errors import NotFinite
from ..models.clip import ClipTextModel
from ..models.layers import TextFeatures
from ..models.open_clip import OpenClipTextModel
from ..models.unet import embed_timesteps
from .chunks import split_chunks
from .tokenizer import clip_tokenizer

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""Scores the SDXL refiner is told for the prompt and for the negative prompt, as AUTOMATIC1111 sets them."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """context: (1, 77 · chunks, context_channels). vector: (1, adm_channels), None where the UNet takes none."""

    context: Tensor
    vector: Tensor | None


@dataclass(frozen=True, eq=False)
class Conditioner:
    """The text side of a model. dtype: what the towers compute in; features come back in it, on `device`.

    read: a text → its token ids; by default CLIP's tokenizer.
    """

    spec: ModelSpec
    towers: Sequence[ClipTextModel | OpenClipTextModel]
    device: torch.device
    dtype: torch.dtype
    read: Callable[[str], Sequence[int]] = field(default_factory=lambda: clip_tokenizer().encode)

    def encode(
        self,
        text: str,
        *,
        width: int,
        height: int,
        clip_skip: int = 1,
        negative: bool = False,
        before_call: Callable[[], None] = lambda: None,
    ) -> Conditioning:
        """Encode one prompt for pictures of width x height pixels.

        clip_skip applies to families that have it (SD 1). An empty negative prompt of SDXL gives zeros for the text,
        as AUTOMATIC1111 does; the sizes stay. before_call is called before each run of a tower, and may raise to stop.
        Raises NotFinite where a tower returned NaN or infinity.
        """
        chunks = split_chunks(self.read(text))
        features = [self._encode_chunks(tower, spec, chunks, clip_skip, before_call) for tower, spec in self._pairs()]
        for number, feature in enumerate(features, 1):
            if not all(bool(part.isfinite().all()) for part in (feature.hidden, feature.pooled) if part is not None):
                raise NotFinite(
                    f"text encoder {number} returned NaN or infinity in {self.dtype}; "
                    "use float32, or look for damage in the checkpoint"
                )
        context = torch.cat([feature.hidden for feature in features], dim=-1)
        pooled = [feature.pooled for feature in features if feature.pooled is not None]
        empty = negative and not text and self.spec.adm != "none"
        if empty:
            context = torch.zeros_like(context)
            pooled = [torch.zeros_like(vector) for vector in pooled]
        vector = None
        if self.spec.adm != "none":
            vector = torch.cat([*pooled, self._embed_sizes(width, height, negative)], dim=-1)
        return Conditioning(context, vector)

    def _pairs(self) -> list[tuple[ClipTextModel | OpenClipTextModel, TextEncoderSpec]]:
        return list(zip(self.towers, self.spec.text, strict=True))

    def _encode_chunks(
        self,
        tower: ClipTextModel | OpenClipTextModel,
        spec: TextEncoderSpec,
        chunks: Sequence[Sequence[int]],
        clip_skip: int,
        before_call: Callable[[], None],
    ) -> TextFeatures:
        """Each chunk alone, joined along the tokens; the pooled vector is the first chunk's."""
        skip = max(clip_skip, spec.skip) if spec.clip_skip else spec.skip
        length, features = spec.config.context_length, []
        for number, chunk in enumerate(chunks):  # one at a time: a chunk's features never depend on its neighbours
            tokens = torch.tensor([clip_tokenizer().pad_chunk(chunk, length, spec.pad)], device=self.device)
            pooled = spec.pooled and number == 0
            before_call()
            features.append(tower(tokens, dtype=self.dtype, skip=skip, final_norm=spec.final_norm, pooled=pooled))
        return TextFeatures(torch.cat([feature.hidden for feature in features], dim=1), features[0].pooled)

    def _embed_sizes(self, width: int, height: int, negative: bool) -> Tensor:
        """Original size, crop, and target size or aesthetic score, each number embedded: (1, numbers · channels)."""
        numbers = [height, width, 0.0, 0.0]
        if self.spec.adm == "aesthetic":
            numbers += [NEGATIVE_AESTHETIC if negative else AESTHETIC]
        else:
            numbers += [height, width]
        values = torch.tensor(numbers, dtype=torch.float32, device=self.device)
        return embed_timesteps(values, self.spec.size_channels).reshape(1, -1).to(self.dtype)
