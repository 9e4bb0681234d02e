"""How much of a model's derived weights a run keeps, and how its pictures are decoded, so that it stays within its memory.

Text towers and the VAE run once a picture, and packing their weights as they go costs next to nothing: on a processor they keep
none. What the UNet keeps saves a tenth of the time of each step. Where a decoded picture's maps do not fit beside it,
that is dropped first, and where they do not fit at all they are made in bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from .. import kernels
from ..config import VAEConfig
from ..errors import RequestError
from ..machine import memory as machine_memory
from ..models.layers import Conv2d, Layer, keep_derived
from ..models.plans import least_room, least_room_to_encode
from ..options import MemoryMode
from ..second_pass import enlarged
from .forecast import BAND_SCRATCH, Forecast, Outlook

if TYPE_CHECKING:
    from ..checkpoint.load import Model
    from ..device import Policy
    from ..models.taesd import TinyVAE
    from ..request import GenerateRequest
    from .engine import ModelEngine

MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)

CERTAIN = 0.95
"""Of a limit, what is planned for: a forecast is one."""
DRIFT = 16 << 20
"""Bytes by which a process differs from the last of its kind."""
SHARE = 0.8
"""Of the memory that this machine has left, what a run may take without being told."""
SPARE, SPARE_A_PIXEL = 512 << 20, 4096
"""Bytes that a run takes at most beside what it keeps: three maps of 256 channels, and more. Where there is less, it is
looked at closely."""


@dataclass(frozen=True)
class Memory:
    """What a run may take. mode: keep all (fast), nothing (lean), or as much as this machine has room for (auto). limit:
    bytes that the process may hold at most, mapped files aside; None: no limit but the machine's."""

    mode: MemoryMode = "auto"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RequestError(f"memory is {str(self.mode)[:80]!r}; it must be {', '.join(MODES)}")


@dataclass(frozen=True)
class Way:
    """kept: bytes of derived weights that the UNet may keep, None for all. decode_room, encode_room: bytes of maps for
    decoding and encoding in bands, before which what was kept is dropped; None: pictures are decoded and encoded whole."""

    kept: int | None
    decode_room: int | None = None
    encode_room: int | None = None


def prepare(model: Model, policy: Policy, preview_decoder: TinyVAE | None = None) -> None:
    """Let the parts of a model that run once a picture keep nothing, on a processor, and likewise what draws previews."""
    if policy.device.type == "cpu":
        for network in filter(None, (model.vae, *model.text, preview_decoder)):
            keep_derived(network, 0)


def choose_way(engine: ModelEngine, request: GenerateRequest) -> Way:
    """How a resolved request is run within the engine's memory.

    Raises RequestError, with the number that would do, where the limit asked for is too low.
    """
    memory = engine.memory
    if engine.policy.device.type != "cpu":
        return Way(None)
    if memory.limit is None and memory.mode != "auto":
        return Way(None if memory.mode == "fast" else 0)
    limit = memory.limit
    if limit is None:
        found = machine_memory()
        if found is None:
            return Way(None)
        left = int(SHARE * found.available) + engine.kept
        if sum(map(most_kept, engine.models)) + SPARE + SPARE_A_PIXEL * _most_pixels(request) < left:
            return Way(None)
        return _within(Outlook(engine, request), left, memory)
    outlook = Outlook(engine, request)
    return _within(outlook, int(CERTAIN * limit) - outlook.base, memory)


def _most_pixels(request: GenerateRequest) -> int:
    """Of the largest picture that a resolved request encodes or decodes, at the size that is asked for."""
    assert request.width is not None and request.height is not None
    width, height = enlarged(request) if request.hires else (request.width, request.height)
    given = request.image.size if request.image is not None and request.resize_mode == "latent" else (0, 0)
    return max(width * height, given[0] * given[1])


def _within(outlook: Outlook, room: int, memory: Memory) -> Way:
    """room: bytes beside what the process holds anyway."""
    lean, vae = outlook.rehearsed(0), outlook.engine.model.spec.vae
    sampling, beside = max(outlook.sampling(0), outlook.beside), outlook.beside
    decoding, encoding = max(lean.decode.held, beside), outlook.encoding
    bands = to_encode = 0
    # A tiny autoencoder's bands know nothing of the rows on the other side.
    seamed = isinstance(vae, VAEConfig) or outlook.request.tiling in ("none", "x")
    if decoding > room and seamed:
        bands = least_room(vae, *outlook.latent, outlook.itemsize) + BAND_SCRATCH
    if encoding > room and outlook.encoded is not None and isinstance(vae, VAEConfig):
        to_encode = least_room_to_encode(vae, *outlook.encoded, outlook.itemsize) + BAND_SCRATCH
    needed = max(sampling, bands or decoding, to_encode or encoding)
    if memory.limit is not None and needed > room:
        least = int((outlook.base + needed + DRIFT) / CERTAIN)
        raise RequestError(
            f"this run takes {-(-least // 10**7) / 100:.2f} GB at least, and --max-memory is {memory.limit / 1e9:.3g} GB; "
            "give more, or make a smaller picture"
        )
    whole = [sampling, *([] if bands else [decoding]), *([] if to_encode else [encoding])]
    kept = 0 if memory.mode == "lean" else max(room - max(whole), 0)
    return Way(
        kept,
        max(room, bands) - BAND_SCRATCH if bands else None,
        max(room, to_encode) - BAND_SCRATCH if to_encode else None,
    )


def chosen(outlook: Outlook) -> Forecast:
    """The forecast of the way that a run takes. Raises RequestError where there is none."""
    way = choose_way(outlook.engine, outlook.request)
    return outlook.at(way.kept, way.decode_room, way.encode_room)


def most_kept(model: Model) -> int:
    """Bytes that the UNet's derived weights take at most, whatever the size of a picture."""
    total = 0
    for module in model.unet.modules():
        if isinstance(module, Layer):
            count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            winograd = isinstance(module, Conv2d) and module.weight.shape[2] == 3 and kernels.ENABLED
            total += count * (16 if winograd else 4)
    return total
