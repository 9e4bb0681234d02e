"""How fast this machine is at each kind of work that a rehearsal names: measured once in a second or two, then kept.

The rates are of what a network does most, so that a forecast made of them is a forecast, not a promise: a machine that is
busy is slower, and was perhaps busy when it was measured. `forget` has them measured anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..machine import cache_folder, processor_name
from . import native
from .rehearsal import Kind, Work, rehearsing
from .rooms import fresh

VERSION = 1
"""Of what is measured and how; another is another file."""
ROUNDS = 5
SECONDS_A_KIND = 0.12
TOUCHED = 96 << 20
"""Bytes of new memory that are written to."""


@dataclass(frozen=True)
class Rates:
    """work: of each kind, operations per second, or bytes per second where nothing is multiplied. touch: bytes of new memory
    that are first written to per second. read: bytes of main memory that are read per second."""

    work: Mapping[Kind, float]
    touch: float
    read: float

    def seconds(self, work: Iterable[Work]) -> float:
        """How long it takes, one after another."""
        return sum(map(self._seconds, work))

    def _seconds(self, work: Work) -> float:
        rate = self.work.get(work.kind)
        if rate is None:  # kernels that were there when the work was rehearsed are gone
            raise KeyError(f"no rate of {work.kind}")
        took = (work.operations or work.moved) / rate
        if work.operations:  # a product of few rows waits for its weights
            took = max(took, work.moved / self.read)
        return took + (work.packed / self.work["pack rows"] if work.packed else 0.0)


def rates(device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Rates:
    """This machine's, with torch's number of threads as it is now: read from the cache folder, or measured and put there.

    device, dtype: what networks compute on and in; by default the processor. A file that is damaged is made anew, and where
    none can be kept the measuring is done at each call.
    """
    place = device or torch.device("cpu")
    path = _path(place, dtype)
    if path is not None and (known := _read(path, _kinds(_served(place, dtype)))) is not None:
        return known
    measured = measure(place, dtype)
    if path is not None:
        with contextlib.suppress(OSError):
            _write(path, measured)
    return measured


def _path(device: torch.device, dtype: torch.dtype) -> Path | None:
    """Another set of kernels, number of threads, processor, torch or device is another file. None without a home folder."""
    known = native.identity() if kernels.ENABLED else None
    told = (VERSION, known, torch.get_num_threads(), processor_name(), torch.__version__, str(device), str(dtype))
    with contextlib.suppress(RuntimeError):
        return cache_folder() / "rates" / f"rates-{hashlib.sha256(repr(told).encode()).hexdigest()[:24]}.json"
    return None


def _served(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels of ours serve there."""
    return native.serves(_drawn(1).to(device, dtype))


def _kinds(served: bool) -> set[Kind]:
    """What is measured."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    return {kind for kind in kinds if served or kind.startswith(("torch", "copy", "pack"))}


def _read(path: Path, kinds: set[Kind]) -> Rates | None:
    """None where there is no file, or not one of ours: whole, with these kinds at least, all numbers above 0."""
    try:
        found = json.loads(path.read_text("utf-8"))
        work: dict[Kind, float] = {kind: float(rate) for kind, rate in found["work"].items()}
        touch, read = float(found["touch"]), float(found["read"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None  # the last two: of a number of 400 digits, of brackets a thousand deep
    sound = all(math.isfinite(rate) and rate > 0 for rate in (*work.values(), touch, read))
    return Rates(work, touch, read) if sound and kinds <= work.keys() else None


def _write(path: Path, found: Rates) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=".rates-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"work": dict(found.work), "touch": found.touch, "read": found.read}, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@torch.no_grad()
def measure(device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Rates:
    """Measure now, in a second or two. Kernels of ours are among it where they would serve on that device in that dtype."""
    place = device or torch.device("cpu")
    timed = [*_torch_samples(place, dtype)]
    served = _served(place, dtype)
    if served:
        timed += _native_samples()
    found: dict[Kind, float] = {kind: amount / _best(run, place) for kind, amount, run in timed}
    if not served:  # weights are cast, and copied into another layout
        found["pack rows"] = found["pack winograd"] = found["copy"]
    return Rates(found, *_memory(place))


Sample = tuple[Kind, float, Callable[[], object]]


def _torch_samples(device: torch.device, dtype: torch.dtype) -> list[Sample]:
    def draw(*shape: int) -> Tensor:
        return _drawn(*shape).to(device, dtype)

    x, weight = draw(1024, 640), draw(640, 640)
    maps = draw(1, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = draw(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    q, k = draw(1, 8, 512, 40), draw(1, 8, 1024, 40)
    whole = draw(2, 320, 64, 64)
    return [
        ("torch product", 2 * 1024 * 640 * 640, lambda: F.linear(x, weight)),
        ("torch convolution", 2 * 9 * 256 * 256 * 1024, lambda: F.conv2d(maps, kernel, padding=1)),
        ("torch attention", 8 * 512 * 1024 * (4 * 40 + 24), lambda: F.scaled_dot_product_attention(q, k, k)),
        ("copy", 2 * whole.nbytes, lambda: torch.cat([whole[:1], whole[1:]])),
    ]


def _native_samples() -> list[Sample]:
    """Layers of SD 1.5's UNet. What each is, in operations, the rehearsal of the same call says."""
    x, matrix = _drawn(2048, 640), _drawn(640, 640)
    large, small = (_map(2, channels, side) for channels, side in ((320, 64), (640, 16)))
    wide = _drawn(320, 320, 3, 3)
    packed = native.pack_rows(matrix)
    wider = _drawn(640, 640, 3, 3)
    four, two = native.pack_f4(wide), native.pack_f2(wider)
    q, k = _drawn(2, 512, 640), _drawn(2, 1024, 640)
    ones = _drawn(320)
    runs: list[tuple[Kind, Callable[..., object], tuple[object, ...]]] = [
        ("linear", native.linear, (x, packed, None, 640)),
        ("winograd 4x4", native.convolve, (large, four, ones, 320, native.F4)),
        ("winograd 2x2", native.convolve, (small, two, _drawn(640), 640, native.F2)),
        ("attention", native.attend, (q, k, k, 8)),
        ("norm", native.group_norm, (large, 32, ones, ones, 1e-5, True)),
        ("pack rows", native.pack_rows, (_drawn(1280, 1280).half(),)),
        ("pack winograd", native.pack_f4, (wider.half(),)),  # larger than a cache, as most are
    ]
    return [(kind, _amount(kind, run, inputs), partial(run, *inputs)) for kind, run, inputs in runs]


def _map(batch: int, channels: int, side: int) -> Tensor:
    return _drawn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)


def _drawn(*shape: int) -> Tensor:
    """Numbers of 0 to 1, whatever torch's defaults are now, and without a draw from its generator."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(shape, dtype=torch.float32, device="cpu", generator=generator)


def _amount(kind: Kind, run: Callable[..., object], inputs: tuple[object, ...]) -> float:
    """Operations of a call, or bytes where it multiplies nothing."""
    with rehearsing() as rehearsal:
        run(*(one.to("meta") if isinstance(one, Tensor) else one for one in inputs))
        stage = rehearsal.mark()
    return sum(work.operations or work.moved for work in stage.work if work.kind == kind)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that it takes at best: of several times, so that neither a first call nor a busy moment counts."""
    best, until, rounds = math.inf, time.perf_counter() + SECONDS_A_KIND, 0
    while rounds < ROUNDS or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        _finish(device)
        best, rounds = min(best, time.perf_counter() - began), rounds + 1
    return max(best, 1e-9)


def _finish(device: torch.device) -> None:
    """Wait for what a graphics card was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _memory(device: torch.device) -> tuple[float, float]:
    """Bytes per second that new memory is first written with, zeroed page by page as it is handed out; and read with."""
    if device.type != "cpu":
        return 1e12, 1e12  # a card's memory is there at once, and its products do not wait for it
    written = read = math.inf
    for _ in range(2):
        with fresh(TOUCHED) as memory:
            room = torch.frombuffer(memory, dtype=torch.float32)
            began = time.perf_counter()
            room.fill_(1)
            between = time.perf_counter()
            room.sum()
            written, read = min(written, between - began), min(read, time.perf_counter() - between)
            del room  # a mapping that is looked at cannot be closed
    return TOUCHED / written, TOUCHED / read
