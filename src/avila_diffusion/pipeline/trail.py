"""A trail: of every model call a digest and some numbers, small enough to lie beside a picture, and enough to say later
where a picture that was made again left the first one.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import JournalProblem, OutputProblem
from ..sampling.guidance import Call, Denoised
from .journal import digest_call, digest_tensor

FORMAT = 1
SUFFIX = ".trail"
SAMPLED = 64
TOLERANCE = 1e-4
"""Of the largest number of a call; rounding in another order stays below it."""
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Footprint:
    """One call. asked, answered: digests of what was asked and of x0. values: 64 numbers of x0, evenly spread."""

    number: int
    step: int
    sigma: float
    asked: str
    answered: str
    values: tuple[float, ...]

    @classmethod
    def of(cls, call: Call, denoised: Denoised) -> Footprint:
        """Of a call that was made."""
        x0 = denoised.x0.detach().reshape(-1)
        where = torch.arange(min(SAMPLED, len(x0)), device=x0.device) * len(x0) // min(SAMPLED, len(x0))
        values = x0[where].float().cpu().tolist()
        return cls(call.number, call.step, call.sigma, digest_call(call), digest_tensor(denoised.x0), tuple(values))


@dataclass(frozen=True, eq=False)
class Trail:
    """The footprints of one engine's run, by the picture's number in that run."""

    pictures: dict[int, list[Footprint]] = field(default_factory=dict)

    def add(self, image: int, call: Call, denoised: Denoised) -> None:
        """One more call of a picture."""
        self.pictures.setdefault(image, []).append(Footprint.of(call, denoised))

    def save(self, image: int, path: Path, header: Mapping[str, Any]) -> Path:
        """Write a picture's trail. header: what was asked for, and under which conditions."""
        calls = [asdict(print_) | {"values": _encoded(print_.values)} for print_ in self.pictures.get(image, [])]
        text = json.dumps({"avila_trail": FORMAT, **header, "calls": calls}, indent=1)
        try:
            path.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OutputProblem(f"the trail {path} cannot be written ({error})") from None
        return path


def read_trail(path: Path) -> tuple[dict[str, Any], list[Footprint]]:
    """(header, footprints) of a trail's file. Raises JournalProblem where it is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise JournalProblem(f"{path} has more than {_MAX_BYTES >> 20} MiB and is no trail")
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict) or header.get("avila_trail") != FORMAT:
            raise JournalProblem(f"{path} is no trail of format {FORMAT}; give the file that was written with --trail")
        calls = header.pop("calls")
        return header, [_footprint(call, f"call {index}") for index, call in enumerate(calls, 1)]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise JournalProblem(f"the trail {path} cannot be read ({str(error)[:200]}); give another") from None


def _footprint(call: Mapping[str, Any], name: str) -> Footprint:
    """A call as JSON gives it back. Raises ValueError, KeyError or TypeError for what is none."""
    kinds: dict[str, Any] = {
        "number": int,
        "step": int,
        "sigma": (int, float),
        "asked": str,
        "answered": str,
        "values": str,
    }
    for field_, kind in kinds.items():
        value = call[field_]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{field_} of {name} is {type(value).__name__}, which it cannot be")
    if not math.isfinite(call["sigma"]):
        raise ValueError(f"sigma of {name} is {call['sigma']}, which it cannot be")
    return Footprint(**{**call, "values": _decoded(call["values"])})


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to. same: it is the same picture. says: in words, one line."""

    same: bool
    says: str


def compare(recorded: Sequence[Footprint], made: Sequence[Footprint]) -> Verdict:
    """Identical, the same but for rounding, or the first call that differs."""
    worst = 0.0
    identical = len(recorded) == len(made)
    for old, new in zip(recorded, made, strict=False):
        where = f"call {new.number + 1} (step {new.step + 1}, sigma {new.sigma:.6g})"
        if (old.step, len(old.values)) != (new.step, len(new.values)) or not _near(old.sigma, new.sigma):
            return Verdict(False, f"differs first at {where}: recorded was step {old.step + 1}, sigma {old.sigma:.6g}")
        scale = max(1.0, *map(abs, old.values))
        apart = max(abs(one - other) for one, other in zip(old.values, new.values, strict=True)) / scale
        if not apart <= TOLERANCE:  # NaN is no sameness either
            return Verdict(False, f"differs first at {where}: by {apart:.3g} of the largest number")
        worst = max(worst, apart)
        identical &= (old.asked, old.answered) == (new.asked, new.answered)
    if len(recorded) != len(made):
        return Verdict(False, f"differs in length: {len(made)} calls, recorded were {len(recorded)}")
    if identical:
        return Verdict(True, f"identical in all {len(made)} calls")
    return Verdict(True, f"same within {TOLERANCE:g} (largest difference {worst:.3g})")


def compare_pixels(recorded: numpy.ndarray[Any, Any], made: numpy.ndarray[Any, Any]) -> Verdict:
    """The same for pictures, where there is no trail."""
    if recorded.shape != made.shape:
        return Verdict(
            False, f"differs in size: {made.shape[1]}x{made.shape[0]}, not {recorded.shape[1]}x{recorded.shape[0]}"
        )
    apart = numpy.abs(recorded.astype(numpy.int16) - made)
    if not apart.any():
        return Verdict(True, "identical in every pixel")
    share = float((apart.max(axis=2) > 0).mean())
    said = f"{share:.2%} of the pixels differ, by at most {apart.max()} of 255"
    return Verdict(bool(apart.max() <= 1), f"same within 1/255 ({said})" if apart.max() <= 1 else f"differs: {said}")


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-9)


def _encoded(values: Sequence[float]) -> str:
    return base64.b64encode(numpy.array(values, "<f4").tobytes()).decode("ascii")


def _decoded(text: str) -> tuple[float, ...]:
    return tuple(numpy.frombuffer(base64.b64decode(text, validate=True), "<f4").tolist())
