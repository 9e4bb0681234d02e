"""A run: text, then for each picture its passes of sampling and the decoding, an event after every call of the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import AvilaError
from ..hashes import FileHash
from ..images import Image, resize
from ..kernels import native, rooms
from ..masking import upscaled
from ..models.layers import keep_derived, release
from ..models.vae import LatentDistribution
from ..request import GenerateRequest
from ..result import Early, GenerateResult, Progress
from ..sampling.guidance import Call, Denoise, Denoised
from ..sampling.noise import ImageNoise, noise_source
from ..second_pass import enlarged, is_latent
from ..sizes import finished_size
from .begin import Begin, Beginning, as_picture, draw_latent
from .branch import switch
from .driver import Step, check, drive
from .inputs import Inputs, Pixels, read_inputs
from .journal import FIRST_PASS
from .latents import cropped, decode, encode, from_vae, to_pixels
from .ledger import Ledger, once
from .loras import lora_hashes
from .memory import Way, choose_way
from .passes import Pass, enlarge
from .plan import make_plan
from .refining import refining
from .telling import told
from .tiling import tile
from .unused import unused

if TYPE_CHECKING:
    from .engine import ModelEngine

SECOND = "second pass"
"""Name of the stage that a second pass begins with."""


class Run:
    """One run of a resolved request that the engine accepted. ledger: what it answers from and writes to. early: where it is
    asked to end with what there is."""

    def __init__(
        self,
        engine: ModelEngine,
        request: GenerateRequest,
        cancel: threading.Event | None,
        ledger: Ledger,
        early: Early | None = None,
    ) -> None:
        self.engine, self.request, self.cancel, self.ledger = engine, request, cancel, ledger
        self.early = Early() if early is None else early
        self.spec, self.policy = engine.model.spec, engine.policy
        self.drawn = engine.drawn(request)
        self.passes = engine.passes(request)
        self.way = Way(None)
        self.refined = None if engine.refiner is None else False

    def events(self, *, asked: GenerateRequest) -> Iterator[Progress | GenerateResult]:
        """Progress, the result last. asked: the request before it was resolved, for what of it was not used."""
        began = time.perf_counter()
        engine, request, ledger = self.engine, self.request, self.ledger
        images = len(request.seeds)
        check(self.cancel)
        loras = engine.reports(self.passes)
        hashes = engine.hashes | lora_hashes(loras)  # made while the sampler works
        used, notes = engine.read(self.passes)
        self.way = choose_way(engine, request)
        keep_derived(engine.model.unet, self.way.kept)
        yield Progress(stage="text", image=0, images=images, step=0, of=0)
        prepare = [self._conditioned(one, last=one is self.passes[-1]) for one in self.passes]
        if ledger.journal is None:
            for make in prepare:
                make()
        made = []
        for index, seed in enumerate(request.seeds):
            latent = yield from self._draw(index, prepare)
            yield Progress(stage="decode", image=index, images=images, step=0, of=0)
            made.append(Image(self._finish(to_pixels(self._decode(latent))), seed=seed))
            self.early.skip = False
            if self.early.finish:
                break
        short = {key: known for key, found in hashes.items() if (known := _wait(found, self.cancel)) is not None}
        check(self.cancel)
        guided = any(not one.plan.unguided for one in self.passes)
        yield GenerateResult(
            tuple(
                told(engine, image, request, self.drawn, index, short, ledger, used, loras)
                for index, image in enumerate(made)
            ),
            request,
            seconds=time.perf_counter() - began,
            report=engine.model.report,
            drawn_at=self._drawn_at,
            notes=(*notes, *unused(asked, guided=guided, variant=self.spec.variant, refined=self.refined)),
        )

    @property
    def _drawn_at(self) -> tuple[int, int] | None:
        """The size that the model draws at, where the pictures are resized from that."""
        size = self.drawn.width or 0, self.drawn.height or 0
        kept = self.request.resize_mode == "keep" and finished_size(self.request) != size
        return size if kept or self.drawn != self.request else None

    def _conditioned(self, one: Pass, *, last: bool) -> Callable[[], Callable[[Begin], Denoise]]:
        """What encodes a pass' prompts when it is first called, and binds them to the model, and to the refiner. Where a
        journal answers everything, no prompt need be read."""
        engine, refiner = self.engine, self.engine.refiner

        def make() -> Callable[[Begin], Denoise]:
            base = engine.conditioned(one, engine.loras(one), self.cancel)
            if refiner is None or not last:
                return base
            second = refiner.conditioned(one, (), self.cancel)
            return lambda begin: self._handing_over(base(begin), second(Begin()))

        return once(make)

    def _handing_over(self, base: Denoise, second: Denoise) -> Denoise:
        """The base model's answers, and the refiner's where a call is its own; what neither needs is not kept meanwhile."""
        unet, refiner = self.engine.model.unet, self.engine.refiner
        assert refiner is not None

        def denoise(call: Call) -> Denoised:
            if self.way.kept is not None:
                release(unet if call.refined else refiner.model.unet)
            keep_derived(refiner.model.unet, self.way.kept)
            return (second if call.refined else base)(call)

        return denoise

    def _draw(
        self, index: int, prepare: list[Callable[[], Callable[[Begin], Denoise]]]
    ) -> Generator[Progress, None, Tensor]:
        """Picture `index`'s latent, after all passes."""
        latent, calls = None, 0
        for number, one in enumerate(self.passes):
            noise = one.plan.noise(index, one.size, self.spec.vae.scale, self.policy.device)
            if number == 0:
                if self._inputs is not None and index == 0:
                    yield Progress(stage="encode", image=index, images=len(self.request.seeds), step=0, of=0)
                fresh = noise_source(self.request.rng or "nv", self.request.seeds[index], self.policy.device)
                with torch.no_grad():
                    begin = self._beginning.of(noise, fresh)
            else:
                assert latent is not None
                begin = self._second(index, one, noise, latent)
            latent, made = yield from self._sample(one, index, noise, begin, prepare[number], calls)
            latent = one.plan.finished(latent, begin)
            calls += made
            if self.early.asked:  # it is not what the journal's run ends in
                return latent
            self.ledger.keep(index, "latent" if one is self.passes[-1] else FIRST_PASS, latent)
        assert latent is not None
        return latent

    @cached_property
    def _inputs(self) -> Inputs | None:
        return read_inputs(self.request, self.drawn)

    @property
    def _like(self) -> Tensor:
        return torch.empty((), dtype=self.policy.latent, device=self.policy.device)

    @cached_property
    def _beginning(self) -> Beginning:
        return Beginning(self.spec, self.drawn, self._inputs, self.passes[0].size, self._like, self._encode)

    @torch.no_grad()
    def _second(self, index: int, one: Pass, noise: ImageNoise, latent: Tensor) -> Begin:
        """What the second pass begins with: the first one's latent, made larger or drawn, made larger and encoded again."""
        scale, by_latent = self.spec.vae.scale, is_latent(self.drawn)

        def enlarge_picture() -> Tensor:
            size, how = enlarged(self.drawn), self.drawn.hires_upscaler
            return as_picture(upscaled(to_pixels(self._decode(latent)), *size, how))

        picture = once(enlarge_picture)

        def make() -> Tensor:
            if by_latent:
                return cropped(enlarge(latent, self.drawn, scale), one.size)
            found, draws = self._encode(picture()), noise.encoding()
            return cropped(from_vae(draw_latent(found, draws), self.spec.latent).to(self._like), one.size)

        start = self.ledger.stage(index, SECOND, make).to(self._like)
        shown = None if self._inputs is None else Inputs(None, depth=self._inputs.depth)
        first = None
        if self.spec.variant == "inpainting" and self.drawn.mask_weight < 1:
            # As AUTOMATIC1111 1.10, which shows the enlarged picture in 0 to 1 here, and in -1 to 1 everywhere else.
            first = self._decode(start).float() if by_latent else (picture() + 1) / 2
        beside = Beginning(self.spec, one.request, shown, one.size, self._like, self._encode, first)
        return Begin(start, concat=beside.of(noise, noise_source("nv", 0)).concat)

    def _sample(
        self,
        one: Pass,
        index: int,
        noise: ImageNoise,
        begin: Begin,
        prepare: Callable[[], Callable[[Begin], Denoise]],
        calls: int,
    ) -> Generator[Progress, None, tuple[Tensor, int]]:
        """One pass of a picture: (its latent, the calls it took); progress after every one. calls: made before."""
        shape = (self.spec.vae.latent_channels, *one.size)
        branch = self.ledger.branch if calls == 0 else None
        begun = one.plan if branch is None else make_plan(branch.beginning(one.request), self.spec, self.engine.table)
        x, drawn = begun.first(noise, shape, self._like, begin.latent)
        run = begun.run(noise, x)
        if branch is not None and begun.sampler != one.plan.sampler:
            after = replace(one.plan, sigmas=begun.sigmas)
            run = switch(run, branch.at, begun.sigmas, partial(after.run, noise))
        if self.engine.refiner is not None and one is self.passes[-1]:
            run = refining(run, one.plan, self.request.refined_from, self.request.refiner_by)

        ready = once(lambda: one.plan.masked(prepare()(begin), begin, drawn))

        def denoise(call: Call) -> Denoised:
            return ready()(call)

        known = [each.plan.calls for each in self.passes]
        of = 0 if None in known else sum(filter(None, known))
        images = len(self.request.seeds)
        yield Progress(stage="sample", image=index, images=images, step=calls, of=of)
        made = 0
        with closing(drive(run, self.ledger.recorded(denoise, index, calls), self.cancel)) as events:
            for event in events:
                if not isinstance(event, Step):
                    return event, made
                made = event.number
                if self.way.kept is not None:
                    rooms.trim()  # what packing left in the heap would come to the bytes that are allowed
                if event.call.refined:
                    self.refined = True
                yield Progress(
                    stage="sample",
                    image=index,
                    images=images,
                    step=calls + made,
                    of=of,
                    sigma=event.call.sigma,
                    preview=partial(self.engine.preview, event.denoised.x0, self.request),
                )
                if self.early.asked:
                    return event.denoised.x0, made
        raise AssertionError("a sampler ended without a latent")

    def _decode(self, latent: Tensor) -> Tensor:
        """(1, 3, height, width) in -1 to 1, as the VAE makes it of a latent."""
        native.drop_scratch()  # of the sampling
        if self.way.decode_room is not None:
            release(self.engine.model.unet)
        vae = self.engine.model.vae
        tile(vae, self.request)
        return decode(vae, latent, self.spec.latent, self.policy.vae, partial(check, self.cancel), self.way.decode_room)

    def _encode(self, picture: Tensor) -> LatentDistribution:
        """What the VAE makes of a picture (1, 3, height, width) in -1 to 1."""
        native.drop_scratch()
        if self.way.encode_room is not None:
            release(self.engine.model.unet)
        vae = self.engine.model.vae
        tile(vae, self.request)
        picture = picture.to(self.policy.device)
        return encode(vae, picture, self.policy.vae, partial(check, self.cancel), self.way.encode_room)

    def _finish(self, pixels: Pixels) -> Pixels:
        """A decoded picture at the size that was asked for, in the picture that it is a part of."""
        frame = None if self._inputs is None else self._inputs.frame
        if frame is not None and frame.box is not None:
            return frame.around(pixels)
        width, height = self.request.width or 0, self.request.height or 0
        if not self.request.hires and pixels.shape != (height, width, 3):
            pixels = resize(pixels, width, height)
        return pixels if frame is None else frame.around(pixels)


def _wait(found: FileHash, cancel: threading.Event | None) -> str | None:
    """The short form of a hash, None where its file went away: a picture is worth more. May be cancelled meanwhile."""
    while not found.done():
        check(cancel)
        with suppress(TimeoutError, AvilaError):
            found.result(timeout=0.1)
    with suppress(AvilaError):
        return found.short()
    return None
