"""What callers of the Python API may give for files: paths, names, pairs and lists of them."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import RequestError

if TYPE_CHECKING:
    import os

    import PIL.Image
    import torch
    from numpy.typing import NDArray

    from .images import Image
    from .pictures import Picture

PictureGiven: TypeAlias = (
    "Picture | Image | str | os.PathLike[str] | bytes | PIL.Image.Image | NDArray[Any] | torch.Tensor"
)
"""A picture that a run begins with: a path, the bytes of a file, an image of ours or of Pillow, an array."""

LoraGiven = str | Path | tuple[str | Path, float] | tuple[str | Path, float, float]
"""A LoRA file by its path or name, or that and its weight, or its weights for text towers and UNet."""
MOST_WEIGHT = 1e6
"""Of a LoRA; a picture is noise long before."""

SIZE = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)\s*(?:([kMGT])(i?))?B?", re.ASCII | re.IGNORECASE)
MOST_MEMORY = 10**15
"""Bytes; no machine has as many."""


def check_given(**pictures: object) -> None:
    """Raises RequestError for a picture that is None, as what reads one returns where there is none: without it the run would
    be another one."""
    for name, picture in pictures.items():
        if picture is None:
            raise RequestError(f"{name} is None; give a path, the bytes of a file, an image or an array of pixels")


def absolute(place: Any) -> Any:
    """Paths as texts that mean the same from every current folder; in lists and pairs too."""
    if isinstance(place, list | tuple):
        return [absolute(one) for one in place]
    return str(place.absolute()) if isinstance(place, Path) else place


def folders_of(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Folders of embeddings, one or several."""
    several = given if isinstance(given, list | tuple) else [given]
    return [Path(name_of("a folder of embeddings", one)) for one in several]


def checked_share(share: object) -> float:
    """The share. Raises RequestError for what is no share of a file, a number from 0 to 1."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise RequestError(f"min_match is {share!r:.80}; it must be a number from 0 to 1, such as 0.9")
    return share


def bytes_of(size: object, what: str = "max_memory") -> int | None:
    """A number of bytes: as it is, or in words such as "1.5G", "800M" (of 1000) or "2GiB" (of 1024); None for None.

    Raises RequestError for anything else, and for less than a megabyte.
    """
    if size is None:
        return None
    found = SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if found is not None:
        base = 1024 if found[3] else 1000
        count = int(float(found[1]) * base ** " KMGT".index((found[2] or " ").upper()))
    elif isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise RequestError(f"{what} is {str(size)[:80]!r}; it must be a size such as 3G, 1500M or 2GiB")
    else:
        count = int(size)
    if not 10**6 <= count <= MOST_MEMORY:
        told = f"{count:,} bytes" if abs(count) <= MOST_MEMORY else "more than any machine has"
        raise RequestError(f"{what} is {told}; give it with its unit, such as 3G")
    return count


def name_of(what: str, value: object) -> str:
    """A path or a name as text. Raises RequestError for anything else."""
    if not isinstance(value, str | Path):
        raise RequestError(f"{what} is given as a path or a name, not as {type(value).__name__}")
    return str(value)


def loras_of(value: object) -> list[tuple[str, float, float]]:
    """(path or name, weight for the text towers, for the UNet) of each LoRA that was given."""
    if value is None:
        return []
    if isinstance(value, list) or (isinstance(value, tuple) and not _is_weighted(value)):
        return [weighted for one in value for weighted in loras_of(one)]
    name, *weights = value if isinstance(value, tuple) else (value, 1.0)
    numbers_ = [_lora_weight(name, weight) for weight in weights]
    return [(name_of("a LoRA", name), numbers_[0], numbers_[-1])]


def _lora_weight(name: object, weight: Any) -> float:
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MOST_WEIGHT:
        raise RequestError(f"the weight of LoRA {name} is {number}; it must be a number such as 0.8")
    return number


def _is_weighted(value: tuple[object, ...]) -> bool:
    """Whether it is one LoRA with one weight or two, not several LoRAs."""
    weights = value[1:]
    return len(weights) in (1, 2) and all(
        isinstance(weight, numbers.Real) and not isinstance(weight, bool) for weight in weights
    )
