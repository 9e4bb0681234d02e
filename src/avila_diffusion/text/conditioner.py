"""Strings → what the UNet is conditioned on: the text towers' features, and for SDXL the pooled text and the sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.embeddings import Embedding, read_embedding
from ..config import ModelSpec
from ..errors import NotFinite
from ..models.clip import ClipTextModel
from ..models.open_clip import OpenClipTextModel
from ..models.tokens import TextFeatures
from ..models.unet import embed_timesteps
from .chunks import EMPTY, Chunk
from .dialects import Dialect, Emphasis
from .reading import TextReader
from .tokenizer import clip_tokenizer

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""Scores the SDXL refiner is told for the prompt and for the negative prompt, as AUTOMATIC1111 sets them."""

BeforeCall = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """context: (1, 77 · chunks, context_channels). vector: (1, adm_channels), None where the UNet takes none."""

    context: Tensor
    vector: Tensor | None


@dataclass(frozen=True, eq=False)
class Reading:
    """A text as chunks. used: the embeddings it names, by name. notes: what was left out or went to an odd place."""

    chunks: tuple[Chunk, ...]
    used: Mapping[str, Embedding]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Conditioner:
    """The text side of a model. dtype: what the towers compute in; features come back in it, on `device`.

    read: a text → its token ids; by default CLIP's tokenizer. dialect: whose chunks, weights and empty negative prompt.
    emphasis: AUTOMATIC1111's modes: "Original" weighs the features and restores each chunk's mean, "No norm" weighs them
    only, "Ignore" reads the brackets without weighing, "None" takes every text as it stands, BREAK too.
    embeddings: name → file, or what was read of it; a name in a text stands for its vectors.
    """

    spec: ModelSpec
    towers: Sequence[ClipTextModel | OpenClipTextModel]
    device: torch.device
    dtype: torch.dtype
    read: Callable[[str], Sequence[int]] = field(default_factory=lambda: clip_tokenizer().encode)
    dialect: Dialect = "a1111"
    emphasis: Emphasis = "None"
    embeddings: Mapping[str, Path | Embedding] = field(default_factory=dict)

    def encode(
        self,
        text: str,
        *,
        width: int,
        height: int,
        clip_skip: int = 1,
        negative: bool = False,
        before_call: BeforeCall = lambda: None,
    ) -> Conditioning:
        """Encode one prompt for pictures of width x height pixels; see `encode_all`."""
        return self.encode_all(
            [text], width=width, height=height, clip_skip=clip_skip, negative=negative, before_call=before_call
        )[0]

    def encode_all(
        self,
        texts: Sequence[str],
        *,
        width: int,
        height: int,
        clip_skip: int = 1,
        negative: bool = False,
        before_call: BeforeCall = lambda: None,
    ) -> list[Conditioning]:
        """Encode the texts that one prompt stands for in turn, for pictures of width x height pixels.

        As in AUTOMATIC1111 they are a batch: shorter ones are filled up with empty chunks to the longest, and the mean that
        emphasis restores is the batch's, a text counting as often as it is there. In other dialects each is alone.
        clip_skip applies to families that have it (SD 1). Where all texts of SDXL's negative prompt are empty, the text is
        zeros, as in AUTOMATIC1111 and diffusers; the sizes stay. before_call is called before each run of a tower, and may
        raise to stop. Raises NotFinite where a tower returned NaN or infinity, WeightMismatch for an embedding of another
        family, and FileProblem for one that cannot be read.
        """
        counts = Counter(texts)
        readings = [self.split(text) for text in counts]
        if self.dialect == "a1111":
            longest = max(len(reading.chunks) for reading in readings)
            rows = [(*reading.chunks, *[EMPTY] * (longest - len(reading.chunks))) for reading in readings]
            groups = [(rows, list(counts.values()))]
        else:
            groups = [([reading.chunks], [1]) for reading in readings]
        used = {name: found for reading in readings for name, found in reading.used.items()}
        encoded: list[list[TextFeatures]] = [[] for _ in self.towers]
        for index, features in enumerate(encoded):
            tower = _Tower(self, index, clip_skip, used, before_call)
            for rows, weights in groups:
                features += tower.encode(rows, weights)
        empty = negative and not any(texts) and self.spec.adm != "none" and self.dialect != "comfyui"
        vector = self._embed_sizes(width, height, negative) if self.spec.adm != "none" else None
        made = {
            text: _joined(parts, vector, empty) for text, parts in zip(counts, zip(*encoded, strict=True), strict=True)
        }
        return [made[text] for text in texts]

    def split(self, text: str) -> Reading:
        """The chunks of a text. Runs no tower; raises WeightMismatch and FileProblem as `encode_all`."""
        taken = self._reader.take(text)
        used = dict.fromkeys(item.name for chunk in taken.chunks for item in chunk.placed)
        return Reading(taken.chunks, {name: self._load(name) for name in used}, taken.notes)

    @cached_property
    def _reader(self) -> TextReader:
        return TextReader(
            self.dialect, self.emphasis, self.read, tuple(self.embeddings), lambda name: self._load(name).count
        )

    @cached_property
    def _loaded(self) -> dict[str, Embedding]:
        return {}

    def _load(self, name: str) -> Embedding:
        if name not in self._loaded:
            source = self.embeddings[name]
            found = source if isinstance(source, Embedding) else read_embedding(source, name)
            found.for_towers(self.spec.text)
            self._loaded[name] = found
        return self._loaded[name]

    def _embed_sizes(self, width: int, height: int, negative: bool) -> Tensor:
        """Original size, crop, and target size or aesthetic score, each number embedded: (1, numbers · channels)."""
        numbers = [height, width, 0.0, 0.0]
        if self.spec.adm == "aesthetic":
            numbers += [NEGATIVE_AESTHETIC if negative else AESTHETIC]
        else:
            numbers += [height, width]
        values = torch.tensor(numbers, dtype=torch.float32, device=self.device)
        return embed_timesteps(values, self.spec.size_channels).reshape(1, -1).to(self.dtype)


@dataclass(frozen=True, eq=False)
class _Tower:
    """One text tower of a conditioner, at work on the chunks of some texts."""

    of: Conditioner
    index: int
    clip_skip: int
    used: Mapping[str, Embedding]
    before_call: BeforeCall

    def encode(self, rows: Sequence[Sequence[Chunk]], counts: Sequence[int]) -> list[TextFeatures]:
        """Texts of equally many chunks; each chunk alone, joined along the tokens; the first chunk's pooled vector."""
        columns, pooled = [], []
        for number, chunks in enumerate(zip(*rows, strict=True)):
            known: dict[Chunk, TextFeatures] = {}
            for chunk in chunks:  # one at a time: a chunk's features never depend on its neighbours
                if chunk not in known:
                    known[chunk] = self._run(chunk, pooled=number == 0)
            if number == 0:
                pooled = [known[chunk].pooled for chunk in chunks]
            columns.append(self._weighed(chunks, [known[chunk].hidden for chunk in chunks], counts))
        return [
            TextFeatures(torch.cat(hidden, dim=1), vector)
            for hidden, vector in zip(zip(*columns, strict=True), pooled, strict=True)
        ]

    def _run(self, chunk: Chunk, pooled: bool) -> TextFeatures:
        of, spec = self.of, self.of.spec.text[self.index]
        ids = clip_tokenizer().pad_chunk(chunk.tokens, spec.config.context_length, spec.pad)
        vectors = {
            1 + item.place: self.used[item.name].for_towers(of.spec.text)[self.index] for item in chunk.placed
        }  # 1: behind the start token
        self.before_call()
        features: TextFeatures = of.towers[self.index](
            torch.tensor([ids], device=of.device),
            dtype=of.dtype,
            skip=max(self.clip_skip, spec.skip) if spec.clip_skip else spec.skip,
            final_norm=spec.final_norm,
            pooled=spec.pooled and pooled,
            vectors=vectors,
        )
        parts = (features.hidden, features.pooled)
        if not all(bool(part.isfinite().all()) for part in parts if part is not None):
            raise NotFinite(
                f"text encoder {self.index + 1} returned NaN or infinity in {of.dtype}; "
                "use float32, or look for damage in the checkpoint"
            )
        return features

    def _weighed(self, chunks: Sequence[Chunk], hidden: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """Emphasis on one chunk of each text, (1, 77, width) each. Its mean is taken over all of them, padding included."""
        if all(weight == 1 for chunk in chunks for weight in chunk.weights):
            return hidden
        exact = torch.promote_types(self.of.dtype, torch.float32)
        before = [part.to(exact) for part in hidden]
        weights = [_weights(chunk, part) for chunk, part in zip(chunks, before, strict=True)]
        if self.of.dialect == "comfyui":
            empty = self._run(EMPTY, pooled=False).hidden.to(exact)
            after = [empty + weight * (part - empty) for part, weight in zip(before, weights, strict=True)]
        else:
            after = [part * weight for part, weight in zip(before, weights, strict=True)]
            if self.of.emphasis == "Original":
                ratio = restoring(before, after, counts)
                after = [part * ratio for part in after]
        return [part.to(self.of.dtype) for part in after]


def restoring(before: Sequence[Tensor], after: Sequence[Tensor], counts: Sequence[int]) -> float:
    """What brings the mean over all of `after` back to that of `before`; counts: how often each tensor is there.

    1 where no finite number does, as in stable-diffusion.cpp: the weights may have brought the mean to 0.
    """

    def total(parts: Sequence[Tensor]) -> float:
        return sum(count * float(part.double().mean()) for count, part in zip(counts, parts, strict=True))

    new = total(after)
    ratio = total(before) / new if new else math.inf
    return ratio if math.isfinite(ratio) else 1.0


def _weights(chunk: Chunk, like: Tensor) -> Tensor:
    """(1, tokens, 1): the weights of a chunk's tokens; start, end and padding have 1."""
    weights = torch.ones(like.shape[1], dtype=like.dtype, device=like.device)
    weights[1 : 1 + len(chunk.weights)] = torch.tensor(chunk.weights, dtype=like.dtype)
    return weights[None, :, None]


def _joined(features: Sequence[TextFeatures], sizes: Tensor | None, empty: bool) -> Conditioning:
    """The towers' features side by side, and their pooled vectors before the sizes; zeros for the text where it is empty."""
    context = torch.cat([feature.hidden for feature in features], dim=-1)
    pooled = [feature.pooled for feature in features if feature.pooled is not None]
    if empty:
        context = torch.zeros_like(context)
        pooled = [torch.zeros_like(vector) for vector in pooled]
    return Conditioning(context, None if sizes is None else torch.cat([*pooled, sizes], dim=-1))
