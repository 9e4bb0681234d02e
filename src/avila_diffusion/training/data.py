"""Pictures with captions on disk: a folder of pictures with `.txt` files beside them, or with a `metadata.jsonl`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL.Image
import torch
from torch import Tensor

from ..errors import FileProblem, RequestError
from ..images import read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Item:
    """A picture and the captions that it is trained with, one of them at a time."""

    path: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """The items of a folder, in the order of their names. size: pictures are cut and scaled to size x size pixels."""

    items: tuple[Item, ...]
    size: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """Of names, sizes on disk and captions: what a run that is gone on with should find again."""
        rows = [(item.path.name, item.path.stat().st_size, item.captions) for item in self.items]
        return hashlib.sha256(json.dumps([self.size, rows]).encode()).hexdigest()

    def pixels(self, index: int) -> Tensor:
        """Picture `index`: (3, size, size), uint8; the middle square of the file's picture, by Lanczos."""
        picture = PIL.Image.fromarray(read_image(self.items[index].path).pixels)
        side = min(picture.size)
        if picture.size != (self.size, self.size):
            left, top = (picture.width - side) / 2, (picture.height - side) / 2
            box = (left, top, left + side, top + side)
            picture = picture.resize((self.size, self.size), PIL.Image.Resampling.LANCZOS, box)
        return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)

    def split(self, validation: float) -> tuple[Dataset, Dataset]:
        """(to train on, to check with): about that share of the items is kept back, chosen by name, not by place."""
        kept = [_share(item.path.name) < validation for item in self.items]
        parts = (tuple(i for i, k in zip(self.items, kept, strict=True) if k is wanted) for wanted in (False, True))
        train, check = (Dataset(items, self.size) for items in parts)
        if not train.items:
            raise FileProblem(
                f"with validation {validation:g} none of {len(self):,} pictures is left to train on; lower it"
            )
        return train, check

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """Pictures as networks see them: (batch, 3, size, size), float32, -1 to 1."""
        return torch.stack([self.pixels(index) for index in indices]).float() / 127.5 - 1.0


def read_dataset(folder: Path, size: int) -> Dataset:
    """The pictures of `folder` with their captions.

    With a `metadata.jsonl` (a line per picture: file_name, and text or captions, a string or a list of them) just those
    pictures; without, every picture in the folder, its caption in a `.txt` file of the same name, or none.
    Raises FileProblem where there is nothing to train on, or a line cannot be used.
    """
    if size < 8 or size % 8:
        raise RequestError(f"size is {size}; it must be a multiple of 8")
    if not folder.is_dir():
        raise FileProblem(f"{folder} is not a folder; give one with pictures and captions")
    listing = folder / METADATA
    items = _listed(folder, listing) if listing.is_file() else _beside(folder)
    if not items:
        raise FileProblem(
            f"{folder} has no pictures; expected {', '.join(SUFFIXES)} files with .txt captions or {METADATA}"
        )
    return Dataset(tuple(sorted(items, key=lambda item: item.path.as_posix())), size)


def _listed(folder: Path, listing: Path) -> list[Item]:
    items = []
    for number, line in enumerate(_text(listing).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["file_name"]
            captions = row.get("captions", row.get("text", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FileProblem(f"{listing}, line {number}: expected an object with file_name and text") from None
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(name, str) or not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
            raise FileProblem(f"{listing}, line {number}: file_name and text must be strings")
        path = folder / name
        if not path.is_file():
            raise FileProblem(f"{listing}, line {number}: there is no {path}")
        items.append(Item(path, tuple(captions) or ("",)))
    return items


def _beside(folder: Path) -> list[Item]:
    items = []
    for path in folder.iterdir():
        if path.suffix.lower() in SUFFIXES and path.is_file():
            caption = path.with_suffix(".txt")
            items.append(Item(path, (_text(caption).strip(),) if caption.is_file() else ("",)))
    return items


def _share(name: str) -> float:
    """A number from 0 to 1 that only depends on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileProblem(f"{path} cannot be read as UTF-8 text ({error})") from None


def order(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The items of a step: epoch after epoch, each a new permutation; a function of seed and step, with no state.

    The last batch of an epoch goes on into the next one, so every item comes equally often.
    """
    first = step * batch
    chosen: list[int] = []
    while len(chosen) < batch:
        epoch, place = divmod(first + len(chosen), count)
        permutation = torch.randperm(count, generator=generator(seed, epoch, 1))
        chosen += permutation[place : place + batch - len(chosen)].tolist()
    return chosen


def generator(seed: int, number: int, purpose: int = 0) -> torch.Generator:
    """A random stream of its own for each seed, number (a step, an epoch) and purpose: nothing has to be kept to resume."""
    words = numpy.random.SeedSequence([seed, purpose, number]).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
