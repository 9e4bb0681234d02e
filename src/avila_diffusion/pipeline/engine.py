"""A model and a request → pictures: text, then for each picture sampling and decoding, an event after every call."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.embeddings import SHORT, Embedding
from ..checkpoint.load import Model
from ..checkpoint.lora.apply import LoraReport
from ..device import Policy
from ..errors import AvilaError, Unsupported
from ..hashes import FileHash, hash_in_background, own_hash
from ..images import Image, check_model_size, drawing_size, resize
from ..infotext import LoraUsed, write
from ..kernels import native
from ..metadata.record import make_record
from ..models.layers import keep_derived, keeper_of, release
from ..models.taesd import TinyVAE
from ..models.text_keys import TextKeys
from ..request import GenerateRequest
from ..result import GenerateResult, Progress
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Denoise
from ..sampling.noise import noise_source
from ..sampling.tables import NoiseTable
from ..text.conditioner import Conditioner
from .branch import switch
from .driver import Step, check, drive
from .latents import Pixels, decode, draw_preview, to_pixels
from .ledger import Ledger, deferred
from .loras import LoraRack, Weighted, lora_hashes
from .memory import Memory, choose_way
from .plan import make_plan
from .prompts import Prompts, Scheduled, condition, read_prompts
from .provenance import told_conditions
from .unused import unused


@dataclass(frozen=True, eq=False)
class ModelEngine:
    """Runs requests on one loaded model. rack: its LoRAs, and how those are found that prompts name. embeddings: name →
    file of the textual inversions that prompts may name. memory: what a run may take. preview_decoder: draws previews.
    """

    model: Model
    policy: Policy
    rack: LoraRack
    embeddings: Mapping[str, Path | Embedding] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    preview_decoder: TinyVAE | None = None

    @classmethod
    def of(cls, model: Model, policy: Policy) -> ModelEngine:
        """An engine without LoRAs of its own."""
        return cls(model, policy, LoraRack(model))

    @property
    def kept(self) -> int:
        """Bytes of derived weights that the UNet keeps now."""
        return keeper_of(self.model.unet).held

    @property
    def size(self) -> int:
        """Default width and height in pixels."""
        return self.model.spec.defaults.size or self.model.spec.size

    def generate(
        self, request: GenerateRequest, cancel: threading.Event | None = None, ledger: Ledger | None = None
    ) -> Iterator[Progress | GenerateResult]:
        """Progress events, the GenerateResult last. What cannot be run is refused before any work is done.

        ledger: what the run answers from and writes to, by default nothing.
        """
        return _tidy(self._run(self.accept(request), cancel, Ledger() if ledger is None else ledger, asked=request))

    def accept(self, request: GenerateRequest) -> GenerateRequest:
        """The request with nothing left open. Raises RequestError or Unsupported for what cannot be run."""
        request = request.resolved(self.size)
        self._accept(request)
        return request

    def _accept(self, request: GenerateRequest) -> None:
        spec = self.model.spec
        if spec.variant != "base":
            raise Unsupported(
                f"{self._name} is the {spec.variant} variant of {spec.family}; it needs a picture beside the "
                "text, and there is no pipeline for that yet; use a base model"
            )
        self.drawn(request)
        make_plan(request, spec, self.table)
        self.rack.use(self.rack.named(request.prompt, request.compat))
        self._read(request)
        if self.memory.limit is not None:
            choose_way(self, request)
        if request.rng == "gpu":
            noise_source("gpu", 0, self.policy.device)

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

    def _run(
        self, request: GenerateRequest, cancel: threading.Event | None, ledger: Ledger, *, asked: GenerateRequest
    ) -> Iterator[Progress | GenerateResult]:
        began = time.perf_counter()
        images = len(request.seeds)
        drawn = self.drawn(request)
        check(cancel)
        named = self.rack.named(request.prompt, request.compat)
        loras = self.rack.use(named)
        hashes = self._hashes | lora_hashes(loras)  # made while the sampler works
        used, notes = self._read(request)
        way = choose_way(self, request)
        keep_derived(self.model.unet, way.kept)
        yield Progress(stage="text", image=0, images=images, step=0, of=0)
        conditioned = partial(self._conditioned, drawn, named, cancel)
        denoise = deferred(conditioned) if ledger.journal else conditioned()
        made = []
        for index, seed in enumerate(request.seeds):
            latent = yield from self._sample(drawn, index, denoise, cancel, ledger)
            yield Progress(stage="decode", image=index, images=images, step=0, of=0)
            native.drop_scratch()  # of the sampling
            if way.decode_room is not None:
                release(self.model.unet)
            picture = decode(
                self.model.vae, latent, self.model.spec.latent, self.policy.vae, partial(check, cancel), way.decode_room
            )
            made.append(Image(_as_asked(to_pixels(picture), request), seed=seed))
        short = {key: known for key, found in hashes.items() if (known := _wait(found, cancel)) is not None}
        check(cancel)
        yield GenerateResult(
            tuple(
                self._told(image, request, drawn, index, short, ledger, used, loras) for index, image in enumerate(made)
            ),
            request,
            seconds=time.perf_counter() - began,
            report=self.model.report,
            drawn_at=None if drawn == request else _size(drawn),
            notes=(*notes, *unused(asked, guided=not make_plan(request, self.model.spec, self.table).unguided)),
        )

    @torch.no_grad()
    def _conditioned(
        self, request: GenerateRequest, loras: tuple[Weighted, ...], cancel: threading.Event | None
    ) -> Denoise:
        """Encode both prompts and bind them to the UNet, with these LoRAs that the prompt names."""
        spec, policy = self.model.spec, self.policy
        self.rack.use(loras)
        assert request.width is not None and request.height is not None
        encode_all = partial(
            self._conditioner(request).encode_all,
            width=request.width,
            height=request.height,
            clip_skip=request.clip_skip,
            before_call=partial(check, cancel),
        )

        def encode(texts: Sequence[str], negative: bool) -> list[tuple[Tensor, Tensor | None]]:
            return [(found.context.to(policy.unet), found.vector) for found in encode_all(texts, negative=negative)]

        conditions = condition(self._prompts(request), encode)
        keys = TextKeys()

        def network(*inputs: Any, **named: Any) -> Tensor:
            check(cancel)  # prompts of unequal length are two calls for one step
            self.rack.use(loras)  # another run may have changed the model meanwhile
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
        return make_plan(request, spec, self.table).guide(denoiser, conditions)

    def _conditioner(self, request: GenerateRequest) -> Conditioner:
        return Conditioner(
            self.model.spec,
            self.model.text,
            self.policy.device,
            self.policy.text,
            dialect=request.compat,
            emphasis=request.emphasis,
            # A folder's embedding goes before one of the same name in a LoRA.
            embeddings={**self.rack.words(self.rack.named(request.prompt, request.compat)), **self.embeddings},
        )

    def _prompts(self, request: GenerateRequest) -> Prompts:
        plan = make_plan(request, self.model.spec, self.table)
        return read_prompts(request, self.model.spec, plan.counted, negative=not plan.unguided)

    def _read(self, request: GenerateRequest) -> tuple[Mapping[str, Embedding], tuple[str, ...]]:
        """(the embeddings that the prompts name, what to tell about them) without running a tower.

        Raises FileProblem, or WeightMismatch, for an embedding that cannot be used.
        """
        prompts, conditioner = self._prompts(request), self._conditioner(request)
        parts = [*prompts.positive, *([] if prompts.negative is None else [prompts.negative])]
        readings = [conditioner.split(text) for text in dict.fromkeys(text for part in parts for text in part.texts)]
        used = {name: found for reading in readings for name, found in reading.used.items()}
        notes = [*prompts.notes, *(note for reading in readings for note in reading.notes)]
        return used, tuple(dict.fromkeys(notes))

    def chunks(self, request: GenerateRequest) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...] | None]:
        """How many chunks each text has that the parts of a resolved request's prompt stand for; likewise the negative
        prompt's, None where it is not looked at. Runs no tower."""
        prompts, conditioner = self._prompts(request), self._conditioner(request)

        def count(part: Scheduled) -> tuple[int, ...]:
            return tuple(len(conditioner.split(text).chunks) for text in dict.fromkeys(part.texts))

        return tuple(map(count, prompts.positive)), None if prompts.negative is None else count(prompts.negative)

    def embeddings_of(self, request: GenerateRequest) -> tuple[Embedding, ...]:
        """Those that the prompts of a resolved request name. Raises FileProblem where one cannot be used."""
        return tuple(self._read(request)[0].values())

    @cached_property
    def table(self) -> NoiseTable:
        """The model's noise levels."""
        return NoiseTable.from_config(self.model.spec.noise)

    def _sample(
        self,
        request: GenerateRequest,
        index: int,
        denoise: Denoise,
        cancel: threading.Event | None,
        ledger: Ledger,
    ) -> Generator[Progress, None, Tensor]:
        """One picture's latent, (1, channels, height / scale, width / scale); progress after every model call."""
        spec, branch = self.model.spec, ledger.branch
        assert request.width is not None and request.height is not None
        scale = spec.vae.scale
        shape = (spec.vae.latent_channels, request.height // scale, request.width // scale)
        like = torch.empty((), dtype=self.policy.latent, device=self.policy.device)
        begun = request if branch is None else branch.beginning(request)
        plan = make_plan(begun, spec, self.table)
        noise = plan.noise(index, shape[1:], scale, self.policy.device)
        run = plan.run(noise, plan.first(noise, shape, like))
        if branch is not None and begun.sampler != request.sampler:
            after = replace(make_plan(request, spec, self.table), sigmas=plan.sigmas)
            run = switch(run, branch.at, plan.sigmas, partial(after.run, noise))
        of, images = plan.calls or 0, len(request.seeds)
        yield Progress(stage="sample", image=index, images=images, step=0, of=of)
        with closing(drive(run, ledger.recorded(denoise, index), cancel)) as events:
            for event in events:
                if not isinstance(event, Step):
                    ledger.keep(index, "latent", event)
                    return event
                yield Progress(
                    stage="sample",
                    image=index,
                    images=images,
                    step=event.number,
                    of=of,
                    sigma=event.call.sigma,
                    preview=partial(self._preview, event.denoised.x0),
                )
        raise AssertionError("a sampler ended without a latent")

    def _preview(self, x0: Tensor) -> Image:
        return Image(draw_preview(x0, self.model.spec, self.preview_decoder, self.policy.vae))

    @cached_property
    def _name(self) -> str:
        """The model as the metadata calls it: its file without the suffix, or its folder."""
        path = self.model.path
        named = path if path.name not in ("", "..") else path.resolve()
        return named.name if path.is_dir() else named.stem

    @cached_property
    def _hashes(self) -> dict[str | Path, FileHash]:
        """The hashes that the metadata wants, begun at the first run and kept: a large file is not read at each.

        A file that was replaced since it was loaded has none: its hash would be another model's.
        """
        files = {"model": self.model.path, "vae": self.model.vae_path}
        return {key: hash_in_background(path) for key, path in files.items() if path and self.model.unchanged(path)}

    def _told(
        self,
        image: Image,
        request: GenerateRequest,
        drawn: GenerateRequest,
        index: int,
        hashes: Mapping[str | Path, str],
        ledger: Ledger,
        used: Mapping[str, Embedding],
        reports: Sequence[LoraReport],
    ) -> Image:
        """The picture with what it says about how it was made."""
        resized = {} if drawn == request else {"Drawn at": "{}x{}".format(*_size(drawn)), "Resized with": "Lanczos"}
        branched = {} if ledger.branch is None else ledger.branch.told(request)
        vae = self.model.vae_path
        embeddings = {name: found.hash[:SHORT] for name, found in used.items()}
        loras = [
            LoraUsed(
                name=lora.name,
                text_weight=lora.text_weight,
                unet_weight=lora.unet_weight,
                hash=own_hash(lora.metadata) or hashes.get(lora.path),
                in_prompt=number >= len(self.rack.given),
            )
            for number, lora in enumerate(reports)
        ]
        infotext = write(
            request,
            request.seeds[index],
            index=index,
            model=self._name,
            model_hash=hashes.get("model"),
            vae=vae.name if vae is not None else None,
            vae_hash=hashes.get("vae"),
            loras=loras,
            embeddings=embeddings,
            extra={**resized, **branched},
        )
        record = make_record(
            request, index, infotext, loras=loras, embeddings=embeddings, conditions=told_conditions(self.policy)
        )
        return replace(image, infotext=infotext, record=record)


def _tidy(run: Iterator[Progress | GenerateResult]) -> Iterator[Progress | GenerateResult]:
    """The same run; memory that its tensors leave goes back to the system when it ends."""
    try:
        yield from run
    finally:
        native.give_back()


def _size(request: GenerateRequest) -> tuple[int, int]:
    assert request.width is not None and request.height is not None
    return request.width, request.height


def _as_asked(pixels: Pixels, request: GenerateRequest) -> Pixels:
    """A picture at the size that was asked for, if it is not already."""
    width, height = _size(request)
    return pixels if pixels.shape == (height, width, 3) else resize(pixels, width, height)


def _wait(found: FileHash, cancel: threading.Event | None) -> str | None:
    """The short form of a hash, None where its file went away: a picture is worth more. May be cancelled meanwhile."""
    while not found.done():
        check(cancel)
        with suppress(TimeoutError, AvilaError):
            found.result(timeout=0.1)
    with suppress(AvilaError):
        return found.short()
    return None
