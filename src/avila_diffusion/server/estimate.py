"""What a job takes at most, told from its request and the model's layout, without torch and without loading anything.

An upper estimate: a forecast (`pipeline.forecast`) knows the truth, and takes the networks to know it. Here maps are counted
by the widest block of each network, at the bytes a number that they are computed with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..config import ModelSpec, TinyVAEConfig, UNetBlockConfig, UNetConfig, VAEConfig
from ..images import drawing_size
from ..request import GenerateRequest
from ..sampling.names import SamplerInfo, resolve_sampler
from ..second_pass import enlarged, is_latent, latent_size
from ..sizes import finished_size, own_size
from ..text.prompt import read_prompt, schedule_part
from ..text.reading import TextReader
from .models import Facts
from .settings import Settings

BASE = 320 << 20
"""Bytes of a process that computes: Python, torch, the tokenizer, its threads, what the kernels work in."""
BANDS = 192 << 20
"""Bytes of maps and scratch that decoding in bands takes beside the maps of the smallest resolution."""
IN_BANDS = 16
"""Maps as large as the smallest resolution's that are held then."""
PREVIEW = 256 << 20
"""Bytes of a tiny decoder that draws previews."""
FINISHING_A_PIXEL, GIVEN_A_PIXEL, SHOWN_A_PIXEL = 48, 24, 3
"""Bytes a pixel: while a decoded picture becomes a file; of a picture that is given; of a finished one."""
CELL_PIXELS = 8
PROCEDURAL_A_PIXEL = 400
"""Bytes that the generator without a model takes a pixel."""


@dataclass(frozen=True)
class Estimate:
    """memory: bytes of the process at most, aside from the mapped model and from derived weights, which are kept only where the
    machine has room for them. least: likewise where pictures are decoded in bands, as is done where memory is short.
    calls: of the model, for a prompt each, for all pictures."""

    memory: int
    least: int
    calls: int


@dataclass(frozen=True)
class _Texts:
    """tokens: of the context of each prompt that a call looks at."""

    tokens: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.tokens)


def estimate(
    request: GenerateRequest,
    facts: Facts,
    settings: Settings,
    *,
    spec: ModelSpec | None = None,
    refiner: Facts | None = None,
) -> Estimate:
    """Of a resolved request. spec: of the model with the VAE that it is run with, by default that of `facts`; refiner: of the
    model that takes over."""
    assert request.width is not None and request.height is not None
    spec = facts.spec if spec is None else spec
    shown = SHOWN_A_PIXEL * _pixels(request) * len(request.seeds)
    if spec is None:
        held = BASE + shown + PROCEDURAL_A_PIXEL * request.width * request.height
        return Estimate(held, held, len(request.seeds))
    itemsize = 8 if settings.dtype == "float64" else 4
    first, last = _latents(request, spec)
    texts = _texts(request, spec, request.prompt, request.negative_prompt)
    second = _texts(request, spec, request.hires_prompt or request.prompt, request.hires_negative_prompt or "")
    unets = [spec.unet, *([refiner.spec.unet] if refiner is not None and refiner.spec is not None else [])]
    sampling = max(_unet(unet, last, max(texts, second, key=_weight), itemsize) for unet in unets)
    finishing = FINISHING_A_PIXEL * max(CELL_PIXELS**2 * last[0] * last[1], _pixels(request))
    decoded = _coded(spec.vae, last, itemsize)
    coded = [decoded, *_encoded(request, spec, first, last, itemsize)]
    # A model of one size draws previews by its own decoder.
    previews = PREVIEW if settings.preview_decoder else min(decoded) if spec.fixed_size else 0
    base = BASE + shown + _given(request) + previews
    whole, bands = max(one for one, _ in coded), max(one for _, one in coded)
    calls = _calls(request, texts, second if request.hires else None)
    memory, least = (base + max(sampling, finishing, coding) for coding in (whole, bands))
    return Estimate(memory, min(memory, least), calls * len(request.seeds))


def _pixels(request: GenerateRequest) -> int:
    """Of a finished picture."""
    width, height = enlarged(request) if request.hires else finished_size(request)
    return width * height


def _given(request: GenerateRequest) -> int:
    width, height = own_size(request) or (0, 0)
    return GIVEN_A_PIXEL * width * height * (3 if request.masked else 1)


def _latents(request: GenerateRequest, spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the first pass' latent and of the last one's."""
    width, height, scale = request.width or 0, request.height or 0, spec.vae.scale
    if spec.fixed_size:
        width, height = drawing_size(width, height, spec.size)
    first = height // scale, width // scale
    return first, latent_size(request, scale) if request.hires and not spec.fixed_size else first


def _weight(texts: _Texts) -> int:
    return sum(texts.tokens)


def _texts(request: GenerateRequest, spec: ModelSpec, prompt: str, negative: str) -> _Texts:
    """Of a pass: the parts of its prompt as long as the longest of them, and the negative prompt where it is looked at."""
    reader = TextReader(dialect=request.compat, emphasis=request.emphasis)
    length = spec.text[0].config.context_length
    steps = request.steps

    def chunks(texts: Iterable[str]) -> int:
        return max(len(reader.take(text).chunks) for text in dict.fromkeys(texts))

    parts = read_prompt(prompt, dialect=request.compat).parts
    longest = max(
        chunks(segment.text for segment in schedule_part(part, steps, dialect=request.compat)) for part in parts
    )
    (opposite,) = read_prompt(negative, negative=True, dialect=request.compat).parts
    tokens = [longest * length] * len(parts)
    if _guided(request, spec) or sum(part.weight for part in parts) != 1:
        others = chunks(segment.text for segment in schedule_part(opposite, steps, dialect=request.compat)) * length
        tokens += [others] * (2 if spec.variant == "pix2pix" and request.image_guidance_scale != 1 else 1)
    return _Texts(tuple(tokens))


def _guided(request: GenerateRequest, spec: ModelSpec) -> bool:
    """Whether some call looks at the negative prompt."""
    if spec.unet.guidance_channels is not None:
        return False
    scales = [*(request.guidance_list or (request.guidance_scale,)), request.hires_guidance_scale or 1.0]
    return any(scale != 1 for scale in scales) or resolve_sampler(request.sampler)[0].uncond


def _unet(config: UNetConfig, latent: tuple[int, int], texts: _Texts, itemsize: int) -> int:
    """Bytes of a call: maps that wait for the way up, the widest block's, and the keys and values of the texts."""
    (height, width), rows = latent, texts.rows
    waiting = worst = largest = 0
    blocks = [*config.input_blocks, *([config.middle] if config.middle else []), *config.output_blocks]
    for number, block in enumerate(blocks):
        numbers = _block(block) * height * width
        worst = max(worst, numbers)
        largest = max(largest, _weights(block))
        if block.resample == "down":
            height, width = -(-height // 2), -(-width // 2)
        elif block.resample == "up":
            height, width = 2 * height, 2 * width
            worst = max(worst, 3 * block.out_channels * height * width)
        if number < len(config.input_blocks):
            waiting += block.out_channels * height * width
    keys = sum(2 * block.transformer.depth * block.out_channels for block in blocks if block.transformer is not None)
    return itemsize * (rows * (waiting + worst) + keys * sum(texts.tokens)) + 4 * largest


def _block(block: UNetBlockConfig) -> int:
    """Numbers a cell that a block holds at once."""
    residual = 2 * block.in_channels + 4 * block.out_channels
    # Queries, keys, values, norm, sum; or the two halves of the gate, four times as wide.
    return max(residual, 14 * block.out_channels) if block.transformer is not None else residual


def _weights(block: UNetBlockConfig) -> int:
    """Numbers of the largest weight of a block, as it is packed where none is kept."""
    convolution = 36 * max(block.in_channels, block.out_channels) * block.out_channels
    return convolution if block.residual or block.resample != "none" else 9 * block.in_channels * block.out_channels


def _coded(
    vae: VAEConfig | TinyVAEConfig, latent: tuple[int, int], itemsize: int, *, encode: bool = False
) -> tuple[int, int]:
    """Bytes of decoding a latent of this height and width, or of encoding to one: (whole, in bands)."""
    cells = latent[0] * latent[1]
    if isinstance(vae, TinyVAEConfig):
        whole = 4 * vae.channels * vae.scale**2 * cells * itemsize
        return whole, whole
    widths = vae.encoder_channels if encode else vae.decoder_channels
    pixels = [cells << 2 * (len(widths) - 1 - level) for level in range(len(widths))]
    worst = 0
    for level, channels in enumerate(widths):
        neighbour = widths[min(level + 1, len(widths) - 1)]  # the next smaller resolution
        worst = max(worst, pixels[level] * (2 * max(channels, neighbour) + channels))
    smallest = widths[-1] * cells
    return itemsize * max(worst, 6 * smallest) + BANDS, itemsize * IN_BANDS * smallest + BANDS


def _encoded(
    request: GenerateRequest, spec: ModelSpec, first: tuple[int, int], last: tuple[int, int], itemsize: int
) -> list[tuple[int, int]]:
    """The same for what is encoded."""
    scale = spec.vae.scale
    if request.image is not None and request.resize_mode == "latent":
        width, height = request.image.size
        return [_coded(spec.vae, (-(-height // scale), -(-width // scale)), itemsize, encode=True)]
    if request.hires and not is_latent(request):
        width, height = enlarged(request)
        return [_coded(spec.vae, (-(-height // scale), -(-width // scale)), itemsize, encode=True)]
    if request.image is None and spec.variant != "inpainting":
        return []
    return [_coded(spec.vae, last, itemsize, encode=True), _coded(spec.vae, first, itemsize, encode=True)]


def _calls(request: GenerateRequest, texts: _Texts, second: _Texts | None) -> int:
    """Of a picture, a call for each prompt that is looked at."""
    sampler = resolve_sampler(request.sampler)[0]
    steps = request.steps
    if request.image is not None:
        steps = steps if request.exact_steps else int(min(request.strength, 0.999) * steps) + 1
    calls = _calls_of(sampler, steps) * texts.rows
    if second is None:
        return calls
    again = sampler if request.hires_sampler is None else resolve_sampler(request.hires_sampler)[0]
    return calls + _calls_of(again, request.hires_steps or request.steps) * second.rows


def _calls_of(sampler: SamplerInfo, steps: int) -> int:
    if sampler.calls == "three":
        return 3 * steps
    if sampler.calls in ("two", "restart", "adaptive"):
        return 2 * steps
    return steps + int(sampler.calls == "extra")
