"""A loaded model as what takes requests: what it can run, what prompts mean to it, its networks bound to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.embeddings import Embedding
from ..checkpoint.load import Model
from ..checkpoint.lora.apply import LoraReport
from ..config import NEEDS
from ..device import Policy
from ..errors import RequestError
from ..hashes import FileHash, hash_in_background
from ..images import Image, check_model_size, drawing_size
from ..kernels import native
from ..models.layers import keeper_of
from ..models.taesd import Autoencoder, TinyVAE
from ..models.text_keys import TextKeys
from ..request import GenerateRequest
from ..result import Early, GenerateResult, Progress
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Denoise
from ..sampling.noise import noise_source
from ..sampling.tables import NoiseTable
from ..text.conditioner import Conditioner
from .begin import Begin
from .driver import check
from .latents import draw_preview
from .ledger import Ledger
from .loras import LoraRack, Weighted
from .memory import Memory, choose_way
from .passes import Pass, passes_of
from .prompts import Prompts, Scheduled, condition, read_prompts
from .run import Run
from .tiling import tile

SMALL = 256
"""Pixels a side up to which a model's own decoder may draw previews."""


@dataclass(frozen=True, eq=False)
class ModelEngine:
    """Runs requests on one loaded model. rack: its LoRAs, and how those are found that prompts name. embeddings: name →
    file of the textual inversions that prompts may name. memory: what a run may take. refiner: the model that may take over
    during the sampling. preview_decoder: draws previews.
    """

    model: Model
    policy: Policy
    rack: LoraRack
    embeddings: Mapping[str, Path | Embedding] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    refiner: ModelEngine | None = None
    preview_decoder: TinyVAE | None = None

    @classmethod
    def of(cls, model: Model, policy: Policy) -> ModelEngine:
        """An engine without LoRAs of its own."""
        return cls(model, policy, LoraRack(model))

    @property
    def models(self) -> tuple[Model, ...]:
        """Its own, and the refiner's."""
        return (self.model,) if self.refiner is None else (self.model, self.refiner.model)

    @property
    def kept(self) -> int:
        """Bytes of derived weights that the UNet keeps now."""
        return keeper_of(self.model.unet).held

    @property
    def size(self) -> int:
        """Default width and height in pixels."""
        return self.model.spec.defaults.size or self.model.spec.size

    def generate(
        self,
        request: GenerateRequest,
        cancel: threading.Event | None = None,
        ledger: Ledger | None = None,
        early: Early | None = None,
    ) -> Iterator[Progress | GenerateResult]:
        """Progress events, the GenerateResult last. What cannot be run is refused before any work is done.

        ledger: what the run answers from and writes to, by default nothing. early: what may ask it to end with what there is.
        """
        run = Run(self, self.accept(request), cancel, Ledger() if ledger is None else ledger, early)
        return _tidy(run.events(asked=request))

    def accept(self, request: GenerateRequest) -> GenerateRequest:
        """The request with nothing left open. Raises RequestError or Unsupported for what cannot be run."""
        request = request.resolved(self.size)
        self._accept(request)
        return request

    def _accept(self, request: GenerateRequest) -> None:
        spec = self.model.spec
        for variant, field_ in NEEDS.items():
            if spec.variant == variant and getattr(request, field_) is None:
                raise RequestError(
                    f"{self.name} is a {variant} model and follows a picture beside the text; "
                    f"give {field_}, or take a base model"
                )
        if request.refiner_switch is not None and self.refiner is None:
            raise RequestError(
                "refiner_switch needs a refiner; load the model with refiner=FILE, or leave refiner_switch out"
            )
        passes = self.passes(request)
        for one in passes:
            self.rack.use(self.loras(one))
        self.read(passes)
        if any(one.plan.edits and len(self._prompts(one).positive) > 1 for one in passes):
            raise RequestError("instruct-pix2pix models take one prompt; leave out AND")
        if self.memory.limit is not None:
            choose_way(self, request)
        if request.rng == "gpu":
            noise_source("gpu", 0, self.policy.device)

    def passes(self, request: GenerateRequest) -> tuple[Pass, ...]:
        """What a resolved request is sampled in. Raises RequestError for what cannot be run."""
        return passes_of(self.drawn(request), self.model.spec, self.table)

    def loras(self, one: Pass) -> tuple[Weighted, ...]:
        """Those that the prompt of a pass names."""
        return self.rack.named(one.request.prompt, one.request.compat)

    def reports(self, passes: Sequence[Pass]) -> tuple[LoraReport, ...]:
        """What became of the LoRAs that it was given, and of those that the passes' prompts name."""
        first, *others = (self.rack.use(self.loras(one)) for one in passes)
        return (*first, *(report for reports in others for report in reports if report not in first))

    def drawn(self, request: GenerateRequest) -> GenerateRequest:
        """The request at the size that the networks work at. Raises RequestError for sizes that cannot be made."""
        spec = self.model.spec
        assert request.width is not None and request.height is not None
        if not spec.fixed_size:
            check_model_size(request.width, request.height)
            return request
        width, height = drawing_size(request.width, request.height, spec.size)
        drawn: dict[str, Any] = {"width": width, "height": height}
        if request.seed_width is not None and request.seed_height is not None:
            # In the measure of the drawing, so that the picture's own size still changes nothing.
            drawn["seed_width"] = max(round(request.seed_width * width / request.width), 1)
            drawn["seed_height"] = max(round(request.seed_height * height / request.height), 1)
        return replace(request, **drawn)

    @torch.no_grad()
    def conditioned(
        self, one: Pass, loras: tuple[Weighted, ...], cancel: threading.Event | None
    ) -> Callable[[Begin], Denoise]:
        """Encode both prompts of a pass and bind them to the UNet, with these LoRAs. Returns what makes a denoiser of them
        for each picture."""
        spec, policy, request = self.model.spec, self.policy, one.request
        self.rack.use(loras)
        assert request.width is not None and request.height is not None
        encode_all = partial(
            self._conditioner(one).encode_all,
            width=request.width,
            height=request.height,
            clip_skip=request.clip_skip,
            before_call=partial(check, cancel),
        )

        def encode(texts: Sequence[str], negative: bool) -> list[tuple[Tensor, Tensor | None]]:
            return [(found.context.to(policy.unet), found.vector) for found in encode_all(texts, negative=negative)]

        conditions = condition(self._prompts(one), encode)
        keys = TextKeys()

        def network(*inputs: Any, **named: Any) -> Tensor:
            check(cancel)  # prompts of unequal length are two calls for one step
            self.rack.use(loras)  # another run may have changed the model meanwhile
            tile(self.model.unet, request)
            predicted: Tensor = self.model.unet(*inputs, **named, keys=keys)
            return predicted

        denoiser = Denoiser(
            network,
            self.table,
            spec.noise.prediction,
            dtype=policy.unet,
            guidance=None if spec.unet.guidance_channels is None else request.guidance_scale,
            shares=True,
        )
        plan = replace(one.plan, variant=spec.variant)
        return partial(plan.guide, plan.asking(denoiser), conditions)

    def _conditioner(self, one: Pass) -> Conditioner:
        request = one.request
        return Conditioner(
            self.model.spec,
            self.model.text,
            self.policy.device,
            self.policy.text,
            dialect=request.compat,
            emphasis=request.emphasis,
            # A folder's embedding goes before one of the same name in a LoRA.
            embeddings={**self.rack.words(self.loras(one)), **self.embeddings},
        )

    def _prompts(self, one: Pass) -> Prompts:
        plan = one.plan
        return read_prompts(
            one.request, self.model.spec, plan.counted, negative=not plan.unguided, earlier=plan.earlier
        )

    def read(self, passes: Sequence[Pass]) -> tuple[Mapping[str, Embedding], tuple[str, ...]]:
        """(the embeddings that the passes' prompts name, what to tell about them) without running a tower.

        Raises FileProblem, or WeightMismatch, for an embedding that cannot be used.
        """
        used: dict[str, Embedding] = {}
        notes: list[str] = []
        for one in passes:
            prompts, conditioner = self._prompts(one), self._conditioner(one)
            parts = [*prompts.positive, *([] if prompts.negative is None else [prompts.negative])]
            texts = dict.fromkeys(text for part in parts for text in part.texts)
            readings = [conditioner.split(text) for text in texts]
            used |= {name: found for reading in readings for name, found in reading.used.items()}
            notes += [*prompts.notes, *(note for reading in readings for note in reading.notes)]
        return used, tuple(dict.fromkeys(notes))

    def chunks(self, one: Pass) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...] | None]:
        """How many chunks each text has that the parts of a pass' prompt stand for; likewise the negative prompt's, None
        where it is not looked at. Runs no tower."""
        prompts, conditioner = self._prompts(one), self._conditioner(one)

        def count(part: Scheduled) -> tuple[int, ...]:
            return tuple(len(conditioner.split(text).chunks) for text in dict.fromkeys(part.texts))

        return tuple(map(count, prompts.positive)), None if prompts.negative is None else count(prompts.negative)

    def embeddings_of(self, request: GenerateRequest) -> tuple[Embedding, ...]:
        """Those that the prompts of a resolved request name. Raises FileProblem where one cannot be used."""
        return tuple(self.read(self.passes(request))[0].values())

    @cached_property
    def table(self) -> NoiseTable:
        """The model's noise levels."""
        return NoiseTable.from_config(self.model.spec.noise)

    def preview(self, x0: Tensor, request: GenerateRequest) -> Image:
        """A rough picture of a latent of a run."""
        decoder = self.draws_previews
        if decoder is self.model.vae:
            tile(self.model.vae, request)
        return Image(draw_preview(x0, self.model.spec, decoder, self.policy.vae))

    @property
    def draws_previews(self) -> Autoencoder | None:
        """The decoder of previews: the one that was given. A model of one small size, such as the bundled one, has latents of a
        kind of its own, which no published factors are for, and its own decoder takes an eighth of a second: that.
        """
        spec = self.model.spec
        own = self.preview_decoder is None and spec.fixed_size and spec.size <= SMALL
        return self.model.vae if own else self.preview_decoder

    @cached_property
    def name(self) -> str:
        """The model as the metadata calls it: its file without the suffix, or its folder."""
        path = self.model.path
        named = path if path.name not in ("", "..") else path.resolve()
        return named.name if path.is_dir() else named.stem

    @cached_property
    def hashes(self) -> dict[str | Path, FileHash]:
        """The hashes that the metadata wants, begun at the first run and kept: a large file is not read at each.

        A file that was replaced since it was loaded has none: its hash would be another model's.
        """
        files = {"model": self.model.path, "vae": self.model.vae_path}
        found: dict[str | Path, FileHash] = {
            key: hash_in_background(path) for key, path in files.items() if path and self.model.unchanged(path)
        }
        return found if self.refiner is None else found | {"refiner": self.refiner.hashes["model"]}


def _tidy(run: Iterator[Progress | GenerateResult]) -> Iterator[Progress | GenerateResult]:
    """The same run; memory that its tensors leave goes back to the system when it ends."""
    try:
        yield from run
    finally:
        native.give_back()
