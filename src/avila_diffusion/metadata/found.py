"""What was found in a picture: the request it would become, the files it names, and what cannot be carried over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import RequestError
from ..infotext import LoraUsed
from ..request import SECOND_PASS, GenerateRequest

_TOGETHER = (
    ("compat", "rng", "noise_batch", "noise_index"),
    ("seed_width", "seed_height"),
    ("variation_seed", "variation_strength"),
    ("sampler",),
    ("sigmas", "schedule", "steps"),
    ("guidance_start", "guidance_stop"),
    ("hires_scale", "hires_width", "hires_height", *SECOND_PASS),
)
"""Fields of a request that can be right or wrong only together, in the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a picture was made, as far as it says so and we can do it.

    source: the program that made it. request_values: what `GenerateRequest.from_dict` takes, valid as a whole, LoRA tags
    taken out of the prompt. model, vae, refiner: names of files, hashes as far as they are told. pictures: the fields of
    the request that were pictures, which no metadata hold, each with the sha256 of its file, "" where that is not told.
    loras: those to be laid on the model. embeddings: names with hashes. fields: all that was said, by the source's own
    names. lost: what changed the picture and cannot be carried over, in words. notes: what else is good to know.
    conditions: versions, device and dtypes, of our own pictures. exact: our own record confirms that nothing is missing.
    """

    source: str
    version: str | None = None
    request_values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_hash: str | None = None
    vae: str | None = None
    vae_hash: str | None = None
    refiner: str | None = None
    refiner_hash: str | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    loras: tuple[LoraUsed, ...] = ()
    embeddings: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    exact: bool = False

    def request(self) -> GenerateRequest:
        """The request itself."""
        return GenerateRequest.from_dict(self.request_values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(kw_only=True)
class Draft:
    """A `Found` while it is being read. Values may still be wrong."""

    source: str
    version: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_hash: str | None = None
    vae: str | None = None
    vae_hash: str | None = None
    refiner: str | None = None
    refiner_hash: str | None = None
    pictures: dict[str, str] = field(default_factory=dict)
    loras: list[LoraUsed] = field(default_factory=list)
    embeddings: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    exact: bool = False

    def take(self, key: str, value: object) -> None:
        """Set a field of the request, unless the value is None."""
        if value is not None:
            self.values[key] = value

    def lose(self, name: str, value: object) -> None:
        """Say that something which changed the picture is not carried over."""
        self.lost.append(f"{name}: {shown(value)}")

    def note_others(self, told: Mapping[str, Any], known: Iterable[str]) -> None:
        """Name the fields of a record that nothing here knows, where they hold something."""
        understood = set(known)
        for name, value in told.items():
            if name not in understood and value not in (None, False, 0, "", [], {}):
                self.notes.append(f"{shown(name)}: {shown(value)} (not understood)")

    def finish(self) -> Found:
        """Leave out of the values what no request may hold, and say so."""
        values, wrong = valid_part(self.values)
        plain = {name: value for name, value in vars(self).items() if name != "values"}
        lost = tuple(dict.fromkeys(map(printable, [*self.lost, *wrong])))
        plain |= {"loras": tuple(self.loras), "lost": lost, "notes": tuple(dict.fromkeys(map(printable, self.notes)))}
        return Found(request_values=values, **plain)


def valid_part(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Those values that make a valid request, and what is wrong with the others."""
    try:
        GenerateRequest.from_dict(values)
    except RequestError:
        pass
    else:
        return dict(values), []
    grouped = {name for group in _TOGETHER for name in group}
    good: dict[str, Any] = {}
    wrong = []
    for group in (*_TOGETHER, *((name,) for name in values if name not in grouped)):
        part = {name: values[name] for name in group if name in values}
        try:
            GenerateRequest.from_dict({**good, **part})
        except RequestError as error:
            wrong.append(" ".join(str(error).split()))
        else:
            good |= part
    return good, wrong


def shown(value: object) -> str:
    """A value on one line of bounded length."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Mapping | list | tuple):
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, TypeError, RecursionError):
            text = type(value).__name__
    else:
        text = "a huge number" if isinstance(value, int) and value.bit_length() > 128 else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def printable(text: str) -> str:
    """A line without what would move a terminal's cursor or change its colours: pictures come from strangers."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def load_json(text: object) -> Any:
    """What a JSON text holds, None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def table(value: object) -> dict[str, Any]:
    """A JSON object, an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Any]:
    """A JSON array, an empty one in place of anything else."""
    return value if isinstance(value, list) else []


def text_of(value: object) -> str | None:
    """A text that says something, None for anything else."""
    return value if isinstance(value, str) and value else None


def whole(value: object) -> Any:
    """A whole number that was written as a float or a text; everything else as it is, for the request to refuse."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str) and len(value) < 30:
        try:
            return int(value)
        except ValueError:
            return value
    return value


def number(value: object, default: float | None = None) -> float | None:
    """A finite number, `default` in place of anything else."""
    if isinstance(value, str) and len(value) < 40:
        try:
            value = float(value)
        except ValueError:
            return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    try:
        found = float(value)
    except OverflowError:
        return default
    return found if math.isfinite(found) else default


def stem(name: object) -> str | None:
    """A model file's name without folders and suffix."""
    if not isinstance(name, str):
        return None
    last = name.replace("\\", "/").rpartition("/")[2]
    for suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf"):
        if last.lower().endswith(suffix):
            last = last[: -len(suffix)]
            break
    return last or None


def plain_fields(values: Mapping[str, Any], leave_out: Iterable[str] = ()) -> dict[str, str]:
    """A JSON object as names and texts."""
    skipped = set(leave_out)
    return {
        str(name): value if isinstance(value, str) else shown(value)
        for name, value in values.items()
        if name not in skipped
    }
