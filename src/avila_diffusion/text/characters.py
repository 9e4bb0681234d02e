"""What CLIP's tokenizer takes a character for: normal form, white space, lower case, letter, number or neither.

The answers come from a table (`scripts/make_clip_characters`) and not from `unicodedata`, whose version of Unicode
changes with Python: the same text has to give the same tokens everywhere. Text in ASCII never loads the table.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate, groupby

# Unicode's White_Space. Python's \s would add U+001C to U+001F.
_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")

LETTER, NUMBER, OTHER = "z", "0", "!"
"""What stands for a letter, a number and anything else in a `shape`; no contraction and no mark has a z."""


def normalise(text: str) -> str:
    """Canonical composition (NFC), runs of white space as one space, lower case character by character.

    Lone surrogates become U+FFFD and pairs the character they stand for. "Σ" is always "σ", never a final "ς".
    """
    if text.isascii():
        return _SPACES.sub(" ", text).lower()
    text = _compose(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return _SPACES.sub(" ", text).translate(_tables().lower)


def shape(text: str) -> str:
    """A `normalise`d text with an ASCII character of its kind for each one beyond ASCII; same length."""
    return text if text.isascii() else text.translate(_tables().kinds)


def _compose(text: str) -> str:
    # Characters that newer versions of Unicode made part of normalisation stand alone here: they split the text.
    normalising = _tables().normalising
    runs = ((active, "".join(run)) for active, run in groupby(text, normalising.__getitem__))
    return "".join(unicodedata.normalize("NFC", run) if active else run for active, run in runs)


class _Ranges:
    """A set of code points, as ranges written gap, length, gap, length …"""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.borders = list(accumulate(numbers))

    def __contains__(self, code: int) -> bool:
        return bisect_right(self.borders, code) % 2 == 1


class _Normalising(dict[str, bool]):
    """Character → whether normalisation can move, split or join it. Filled as characters are met."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__()
        self.ranges = _Ranges(numbers)

    def __missing__(self, character: str) -> bool:
        answer = self[character] = ord(character) in self.ranges
        return answer


class _Kinds(dict[int, str]):
    """Code point → LETTER, NUMBER or OTHER, for `str.translate`; ASCII stays. Filled as characters are met."""

    def __init__(self, letters: Iterable[int], numbers: Iterable[int]) -> None:
        super().__init__((code, chr(code)) for code in range(128))
        self.letters, self.numbers = _Ranges(letters), _Ranges(numbers)

    def __missing__(self, code: int) -> str:
        kind = self[code] = LETTER if code in self.letters else NUMBER if code in self.numbers else OTHER
        return kind


class _Tables:
    def __init__(self) -> None:
        source = importlib.resources.files("avila_diffusion") / "data" / "clip_characters.json"
        table = json.loads(source.read_text(encoding="utf-8"))
        self.normalising = _Normalising(table["normalising"])
        self.kinds = _Kinds(table["letters"], table["numbers"])
        self.lower = _lower_case(table["lower"], table["lower_several"])


def _lower_case(runs: Iterable[Sequence[int]], several: Iterable[tuple[int, str]]) -> dict[int, int | str]:
    lower: dict[int, int | str] = dict(several)
    for first, last, stride, distance in runs:
        for code in range(first, last + 1, stride):
            lower[code] = code + distance
    return lower


@cache
def _tables() -> _Tables:
    return _Tables()
