"""What a run will take, in memory and in time, without running it: its networks rehearsed, its calls counted, their work timed
by this machine's rates.

The forecast is of a quiet machine. It is rougher where torch computes in place of the kernels: its own scratch is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import kernels
from ..errors import RequestError
from ..kernels import native, rooms
from ..kernels.calibration import rates
from ..kernels.rehearsal import Stage, rehearsing
from ..models.layers import Layer, keeper_of
from ..models.plans import least_room, products
from ..models.text_keys import TextKeys
from ..models.twin import twin
from ..request import GenerateRequest
from ..sampling.guidance import Call
from ..second_pass import enlarged, is_latent
from ..sizes import finished_size, own_size
from .passes import Pass
from .plan import Plan

if TYPE_CHECKING:
    from .engine import ModelEngine

BASE = 180 << 20
"""Bytes of a process that has loaded a model, where the system does not tell: Python, torch, the tokenizer."""
BASE_AT_LEAST = 120 << 20
"""The same without a single one of those."""
LIBRARIES = 64 << 20
"""Bytes that libraries take when they compute first: threads, oneDNN's programs, what Python keeps of a run."""
FLOATS_A_PIXEL, BYTES_A_PIXEL = 3, 12
"""Copies of a decoded picture in floats while it becomes bytes; bytes while those are resized and written."""
GIVEN_A_PIXEL = 24
"""Bytes a pixel of a picture that a run begins with."""
BAND_SCRATCH = 96 << 20
"""Bytes that decoding in bands, of the picture or of a preview, takes beside its maps: the kernels' scratch, a picture, and
rooms that are free."""
REMEMBERED = 16
"""Rehearsals that are kept."""


@dataclass(frozen=True)
class Forecast:
    """A run's memory in bytes and time in seconds, from now on.

    peak_bytes: of the process at most, base_bytes of them what it holds now; mapped files are not among them. kept_bytes:
    derived weights that stay. prepare_seconds: making those, and the first touch of all memory. text_seconds, step_seconds,
    decode_seconds: of all prompts, of a guided call of the model, of a picture's decoding. calls: of the model, for all
    pictures. rough: torch computes, or a graphics card. notes: what was assumed.
    """

    peak_bytes: int
    base_bytes: int
    kept_bytes: int
    seconds: float
    prepare_seconds: float
    text_seconds: float
    step_seconds: float
    decode_seconds: float
    calls: int
    pictures: int
    rough: bool
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Outlook:
    """What a resolved request takes, by how much of its derived weights may stay.

    base: bytes that the process holds beside what a run makes and gives back, finished pictures among them.
    """

    def __init__(self, engine: ModelEngine, request: GenerateRequest) -> None:
        self.engine = engine
        self.request = request
        self.passes = engine.passes(request)
        self.texts = [_Texts.of(engine, one) for one in self.passes]
        self.of_rehearsing = _load_what_rehearsals_need()
        held = held_now()
        # What earlier runs left is given back or used again.
        without = BASE if held is None else max(held - rooms.held() - engine.kept, BASE_AT_LEAST)
        (across, down), (height, width) = finished_size(request), self.latent
        shown = max(across * down, engine.model.spec.vae.scale**2 * height * width)
        self.base = without + LIBRARIES + 3 * shown * len(request.seeds) + self._given()

    def _given(self) -> int:
        """Bytes of the pictures that the run begins with: as they are given, fitted, and as floats."""
        width, height = own_size(self.request) or (0, 0)
        return GIVEN_A_PIXEL * width * height * (3 if self.request.masked else 1)

    @property
    def finishing(self) -> int:
        """Bytes that it takes to make a decoded picture one of 8 bits, at the size asked for, and a file."""
        request, scale = self.request, self.engine.model.spec.vae.scale
        (across, down), (height, width) = finished_size(request), self.latent
        return FLOATS_A_PIXEL * 12 * scale**2 * width * height + BYTES_A_PIXEL * across * down

    @property
    def beside(self) -> int:
        """Bytes beside kept weights that a run takes at least, though its networks need less: for the file, and for a
        preview where those are decoded."""
        decoder = self.engine.preview_decoder
        if decoder is None:
            return self.finishing
        return self.finishing + least_room(decoder.config, *self.latent, self.itemsize) + BAND_SCRATCH

    @property
    def keepable(self) -> int:
        """Bytes of derived weights that the UNet would keep at this size."""
        return self.rehearsed(None).kept

    def rehearsed(self, kept: int | None) -> Rehearsed:
        """The run's stages where at most so many bytes of derived weights stay; None: all, 0: none. Of passes the last."""
        return self._pass(len(self.passes) - 1, kept)

    def _pass(self, number: int, kept: int | None, engine: ModelEngine | None = None) -> Rehearsed:
        engine = self.engine if engine is None else engine
        return _rehearsed(engine, self.texts[number], self.passes[number].size, kept)

    def sampling(self, kept: int | None) -> int:
        """Bytes that the calls of the models take at most, beside the base, with what is kept."""
        numbers = range(len(self.passes))
        grown = max(self._pass(number, kept).alone.held for number in numbers)
        refiner = self.engine.refiner
        if refiner is None:
            return grown
        second = self._pass(numbers[-1], kept, refiner)
        # Where there is no limit, both keep what they have derived.
        return grown + second.kept if kept is None else max(grown, second.alone.held)

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width in latent cells of what is decoded last, at the size that the networks work at."""
        return self.passes[-1].size

    @property
    def encoded(self) -> tuple[int, int] | None:
        """Height and width in pixels of the largest picture that is encoded, None where there is none."""
        scale, request = self.engine.model.spec.vae.scale, self.request
        height, width = (scale * side for side in self.latent)
        if request.image is not None and request.resize_mode == "latent":
            return request.image.size[::-1]
        if self._drawn_between:  # before it is cut
            return enlarged(request)[::-1]
        if request.image is None and self.engine.model.spec.variant != "inpainting":
            return None
        return height, width

    @property
    def _drawn_between(self) -> bool:
        """Whether the first pass' picture is drawn, and encoded again for the second."""
        return self.request.hires and not is_latent(self.request)

    @property
    def encoding(self) -> int:
        """Bytes that encoding a picture whole takes, 0 where there is none to encode."""
        return 0 if self.encoded is None else _encoded(self.engine, self.encoded).held

    def at(self, kept: int | None, decode_room: int | None = None, encode_room: int | None = None) -> Forecast:
        """The forecast where at most so many bytes of derived weights stay; None: all, 0: none.

        decode_room, encode_room: bytes of maps with which pictures are decoded and encoded in bands; None: whole.
        """
        if kept is not None and (isinstance(kept, bool) or not isinstance(kept, int) or kept < 0):
            raise RequestError(f"kept is {str(kept)[:80]!r}; it must be a number of bytes, or None for all")
        engine, request, policy = self.engine, self.request, self.engine.policy
        rate = rates(policy.device, policy.unet)
        pictures = len(request.seeds)
        seen = [self._pass(number, kept) for number in range(len(self.passes))]
        last, calls, sampled = seen[-1], 0, 0.0
        step = rate.seconds(last.step.work)
        for number, (one, texts, found) in enumerate(zip(self.passes, self.texts, seen, strict=True)):
            refined = None
            if engine.refiner is not None and one is self.passes[-1]:
                refined = self._pass(number, kept, engine.refiner)
            guided, alone = _calls(one.plan, texts)
            share = 0.0 if refined is None else 1 - request.refined_from
            for stages, part in ((found, 1 - share), (refined, share)):
                if stages is not None:
                    each, plain = (rate.seconds(stage.work) for stage in (stages.step, stages.alone))
                    sampled += part * (guided * each + alone * plain)
            calls += guided + alone
        decode, text = rate.seconds(last.decode.work), request.count * sum(rate.seconds(x.text.work) for x in seen)
        grown = max(self.sampling(kept), last.decode.held) if _by_kernels(engine) else max(x.peak for x in seen)
        if decode_room is not None:
            grown = max(self.sampling(kept), decode_room + BAND_SCRATCH)
            decode *= self._banded(decode_room)
        encode = 0.0
        if self.encoded is not None:
            stage = _encoded(engine, self.encoded)
            encode = rate.seconds(stage.work)
            if self._drawn_between:
                encode = pictures * (encode + rate.seconds(seen[0].decode.work))
            grown = max(grown, stage.held + last.kept if encode_room is None else encode_room + BAND_SCRATCH)
        grown = max(grown, last.kept + self.beside)
        # A run that is not told how much it may hold is not rehearsed.
        base = self.base - (self.of_rehearsing if engine.memory.limit is None else 0)
        prepare = max(rate.seconds(last.first.work) - step, 0.0) + grown / rate.touch
        plan = self.passes[0].plan
        notes = [f"{plan.counted} model calls were assumed; only the run can tell"] if plan.calls is None else []
        if policy.device.type != "cpu":
            notes.append(f"the peak counts what lies on {policy.device} together with the process")
        return Forecast(
            peak_bytes=base + grown,
            base_bytes=base,
            kept_bytes=last.kept,
            seconds=prepare + text + encode + pictures * (sampled + decode),
            prepare_seconds=prepare,
            text_seconds=text,
            step_seconds=step,
            decode_seconds=decode,
            calls=pictures * calls,
            pictures=pictures,
            rough="linear" not in rate.work,
            notes=tuple(notes),
        )

    def _banded(self, room: int) -> float:
        """How many times as many products it takes to decode in bands with that room."""
        config, itemsize = self.engine.model.spec.vae, self.itemsize
        whole, bands = (products(config, *self.latent, some, itemsize) for some in (10**15, room))
        return bands / whole

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the decoder's maps; in half precision it may have to be made again in float32."""
        return max(4, self.engine.policy.vae.itemsize)


def _by_kernels(engine: ModelEngine) -> bool:
    return engine.policy.device.type == "cpu" and kernels.ENABLED


def _calls(plan: Plan, texts: _Texts) -> tuple[int, int]:
    """Of a picture: (calls that look at the negative prompt, calls that do not)."""
    total = plan.counted if plan.calls is None else plan.calls
    if texts.negative is None:
        return total, 0
    steps, nothing = len(plan.sigmas) - 1, torch.empty(0)
    guided = 0
    for number in range(total if steps else 0):
        step = min(number * steps // total, steps - 1)
        call = Call(nothing, float(plan.sigmas[step]), step, number=number)
        guided += plan.guidance.acts(call, steps, plan.shared)
    return guided, total - guided


@dataclass(frozen=True)
class _Texts:
    """What enters of the prompts. positive: tokens of each part's context. negative: likewise, None where it is not looked at.
    chunks: runs of the text towers. edits: the negative prompt is looked at with the picture and without it.
    """

    positive: tuple[int, ...]
    negative: int | None
    chunks: int
    edits: bool = False

    @classmethod
    def of(cls, engine: ModelEngine, one: Pass) -> _Texts:
        """Of a pass, without running a tower."""
        prompts, length = engine.chunks(one), engine.model.spec.text[0].config.context_length
        positive, negative = prompts
        longest = max(max(part) for part in positive)
        runs = sum(map(sum, positive)) + (0 if negative is None else sum(negative))
        opposite = None if negative is None else max(negative) * length
        return cls((longest * length,) * len(positive), opposite, runs, one.plan.edits)

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """(rows, tokens) of the network's calls for a guided step; contexts of one length are one batch."""
        tokens = [*self.positive, *([] if self.negative is None else [self.negative] * (1 + self.edits))]
        return tuple((count, length) for length, count in Counter(tokens).items())


@dataclass(frozen=True)
class Rehearsed:
    """What one picture's run was, stage by stage. first, step, alone: the UNet's first call, another, and one without
    guidance. kept: bytes of derived weights at the end. peak: bytes of tensors that lived at once."""

    text: Stage
    first: Stage
    step: Stage
    alone: Stage
    decode: Stage
    kept: int
    peak: int


_known: dict[object, Rehearsed] = {}


def _rehearsed(engine: ModelEngine, texts: _Texts, latent: tuple[int, int], kept: int | None) -> Rehearsed:
    """The rehearsal of a picture; made once for what it depends on."""
    key = (_model_key(engine), texts, latent, kept, torch.get_num_threads())
    if key not in _known:
        made = _rehearse(engine, texts, latent, kept)
        while len(_known) >= REMEMBERED:
            _known.pop(next(iter(_known)), None)
        _known[key] = made
    return _known[key]


def _model_key(engine: ModelEngine) -> object:
    """The networks as a rehearsal sees them: configs, dtypes of the weights, which of them are changed."""
    model, policy = engine.model, engine.policy
    networks = (model.unet, model.vae, *model.text)
    dtypes = tuple(tuple(parameter.dtype for parameter in network.parameters()) for network in networks)
    changed = tuple(
        (index, name, *module._deltas)
        for index, network in enumerate(networks)
        for name, module in network.named_modules()
        if isinstance(module, Layer) and module._deltas
    )
    spec = model.spec
    return (spec.unet, spec.vae, spec.text, spec.adm, dtypes, changed, policy, kernels.ENABLED)


def _rehearse(engine: ModelEngine, texts: _Texts, latent: tuple[int, int], kept: int | None) -> Rehearsed:
    model, policy = engine.model, engine.policy
    unet, vae = twin(model.unet, kept), twin(model.vae, 0)
    towers = [twin(tower, 0) for tower in model.text]
    tokens = torch.empty(1, model.spec.text[0].config.context_length, dtype=torch.long, device="meta")
    with rehearsing() as rehearsal:
        for tower, told in zip(towers, model.spec.text, strict=True):
            for _ in range(texts.chunks):
                tower(tokens, dtype=policy.text, skip=told.skip, final_norm=told.final_norm, pooled=told.pooled)
        text = rehearsal.mark()
        step_of = _Steps(engine, unet, latent, texts.edits)
        contexts = step_of.contexts(texts.batches)
        step_of(contexts)
        first = rehearsal.mark()
        step_of(contexts)
        step = rehearsal.mark()
        alone = step
        if texts.negative is not None:
            single = step_of.contexts(((len(texts.positive), texts.positive[0]),))
            step_of(single)
            rehearsal.mark()
            step_of(single)
            alone = rehearsal.mark()
        native.drop_scratch()
        vae.decode(step_of.latent(model.spec.vae.latent_channels, policy.vae))
        decode = rehearsal.mark()
    peak = max(stage.peak for stage in (text, first, step, alone, decode))
    return Rehearsed(text, first, step, alone, decode, keeper_of(unet).held, peak)


def _encoded(engine: ModelEngine, size: tuple[int, int]) -> Stage:
    """What encoding a picture of this height and width takes, whole."""
    key = (_model_key(engine), size, torch.get_num_threads())
    if key not in _known_encodings:
        vae, dtype = twin(engine.model.vae, 0), engine.policy.vae
        with rehearsing() as rehearsal:
            vae.encode(torch.empty(1, vae.config.image_channels, *size, dtype=dtype, device="meta"))
            _known_encodings[key] = rehearsal.mark()
    return _known_encodings[key]


_known_encodings: dict[object, Stage] = {}


class _Steps:
    """Calls of a UNet's twin, with inputs of the shapes that `Denoiser` gives it."""

    def __init__(self, engine: ModelEngine, unet: Any, latent: tuple[int, int], apart: bool) -> None:
        """apart: the rows of a call have other latents each, with what is joined to them."""
        self.config, self.dtype = engine.model.spec.unet, engine.policy.unet
        self.unet, self.size, self.apart, self.keys = unet, latent, apart, TextKeys()

    def latent(self, channels: int, dtype: torch.dtype, rows: int = 1) -> torch.Tensor:
        return torch.empty(rows, channels, *self.size, dtype=dtype, device="meta")

    def contexts(self, batches: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        width = self.config.context_channels
        return [torch.empty(*batch, width, dtype=self.dtype, device="meta") for batch in batches]

    def __call__(self, contexts: Sequence[torch.Tensor]) -> None:
        """One step: a call for each context."""
        told = torch.float64 if self.dtype == torch.float64 else torch.float32
        for context in contexts:
            adm = self.config.adm_channels
            t = torch.empty(1, dtype=told, device="meta")
            self.unet(
                self.latent(self.config.in_channels, self.dtype, len(context) if self.apart else 1),
                t,
                context,
                vector=None if adm is None else torch.empty(len(context), adm, dtype=self.dtype, device="meta"),
                guidance=None if self.config.guidance_channels is None else t,
                keys=self.keys,
            )


def held_now() -> int | None:
    """Bytes that this process holds beside mapped files; None where the system does not tell (outside of Linux)."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", errors="replace").splitlines()
    except OSError:
        return None
    told = dict(line.split(":", 1) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return sum(int(value.split()[0]) << 10 for value in told.values()) or None


@cache
def _load_what_rehearsals_need() -> int:
    """Load it: torch imports some hundred modules of its own at the first operation without numbers. The bytes it took."""
    before = held_now()
    empty = torch.empty(1, device="meta")
    torch.add(empty, empty)
    after = held_now()
    return 0 if before is None or after is None else max(after - before, 0)
