"""The numbers of a training run: frozen dataclasses, read from a TOML file, refused in one line where they are wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import FileProblem, RequestError

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a network is trained, whatever it is.

    steps: of the whole run. batch: pictures a step. warmup: steps over which the learning rate rises; decay: share of
    the run, at its end, over which it falls to 0; between the two it is constant, so that a run can be made longer
    later. clip: the gradient's greatest norm. ema: decay of the averaged weights, which are what is written; 0 for none.
    optimizer: muon turns matrices and kernels by orthogonalised momentum, and leaves the rest to adamw.
    precision: what networks compute in; weights and optimizer stay float32. compile: through torch.compile, which needs
    a C++ compiler and pays from some thousand steps on. minutes: the run stops and keeps its state after so many.
    """

    steps: int
    batch: int
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.2
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.0
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    compile: bool = False
    keep_every: int = 500
    sample_every: int = 1000
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "keep_every", "sample_every"):
            if getattr(self, name) < 1:
                raise RequestError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name, low, high in (
            ("learning_rate", 0.0, 10.0),
            ("weight_decay", 0.0, 10.0),
            ("decay", 0.0, 1.0),
            ("ema", 0.0, 1.0),
            ("clip", 0.0, math.inf),
            ("seed", 0, 2**63),
            ("warmup", 0, 2**63),
            ("minutes", 1e-3, 1e9),
        ):
            check_range(f"train.{name}", getattr(self, name), low, high)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise RequestError(f"train.betas are {self.betas}; both must be from 0 to below 1")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rising = min((step + 1) / max(self.warmup, 1), 1.0)
        falling = self.steps * self.decay
        left = min((self.steps - step) / falling, 1.0) if falling else 1.0
        return self.learning_rate * min(rising, left)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raises RequestError unless the value is in the range, or None."""
    if value is not None and not low <= value <= high:
        raise RequestError(f"{name} is {value:g}; it must be from {low:g} to {high:g}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a configuration file. Raises FileProblem where it cannot be read, RequestError for bad TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editor puts a mark in front
    except OSError as error:
        raise FileProblem(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}") from None


def read_settings(kind: type[Settings], table: object, where: str) -> Settings:
    """An instance of the dataclass `kind` from a TOML table called `where` in messages.

    Raises RequestError for a value of the wrong type, a name that does not exist, or one that is missing.
    """
    if not isinstance(table, dict):
        raise RequestError(f"[{where}] is {type(table).__name__}; expected a table")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, 1)
            raise RequestError(f"[{where}] has no {name}{f'; did you mean {near[0]}' if near else ''}?")
    for name, field in fields.items():
        bare = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if bare and name not in table:
            raise RequestError(f"[{where}] needs {name}")
    return kind(**{name: _convert(value, hints[name], f"{where}.{name}") for name, value in table.items()})


def _convert(value: object, hint: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert(value, next(kind for kind in arguments if kind is not type(None)), where)
    if origin is Literal:
        if value not in arguments:
            raise RequestError(f"{where} is {value!r}; it is one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise RequestError(f"{where} is {value!r}; expected a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise RequestError(f"{where} has {len(value)} values; expected {len(kinds)}")
        return tuple(_convert(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        if hint is float and not math.isfinite(float(value)):
            raise RequestError(f"{where} is {value}; expected a finite number")
        return value
    raise RequestError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")
