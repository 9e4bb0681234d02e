"""Emphasis as ComfyUI reads it. No torch; any text, in time linear in its length but for a logarithm."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\\[()]|[():]")
_ESCAPE = re.compile(r"\\([()])")
_UP = 1.1
_LARGEST = 1e300


@dataclass
class _Marks:
    """Where the text's brackets and colons are. partner: both ways. opens: brackets with a partner; unclosed: without."""

    text: str
    places: list[int] = field(default_factory=list)
    opens: list[int] = field(default_factory=list)
    partner: dict[int, int] = field(default_factory=dict)
    unclosed: deque[int] = field(default_factory=deque)

    def __post_init__(self) -> None:
        stack: list[int] = []
        level = 0
        for match in _TOKEN.finditer(self.text):
            place, mark = match.start(), match[0]
            if len(mark) == 2:  # escaped
                continue
            self.places.append(place)
            if mark == "(":
                # Below level 0, after a ")" too many, an opening bracket only makes up for it.
                if level >= 0:
                    stack.append(place)
                level += 1
            elif mark == ")":
                level -= 1
                if level >= 0:
                    self.partner[place] = stack.pop()
                    self.partner[self.partner[place]] = place
        self.opens = sorted(place for place, other in self.partner.items() if place < other)
        self.unclosed.extend(stack)

    def group(self, opening: int, closing: int, weight: float) -> tuple[int, int, float]:
        """What is inside a pair of brackets, without its number, and the weight it has there.

        The number is what follows the last colon, if it is one; it takes the place of the weight outside.
        """
        last = self.places[bisect_left(self.places, closing) - 1]
        if self.text[last] == ":" and last > opening + 1:
            number = _number(self.text[last + 1 : closing])
            if number is not None:
                return opening + 1, last, number
        return opening + 1, closing, min(weight * _UP, _LARGEST) if weight > 0 else max(weight * _UP, -_LARGEST)


def read_comfyui(text: str) -> list[tuple[str, float]]:
    """Texts and weights in order; neighbours of equal weight stay apart, as ComfyUI tokenizes them apart.

    A bracket that is not closed is text up to the end, unless its last character is a bracket that closes: then those
    two are taken for a pair, and the bracket that lost its partner is the one not closed.
    """
    marks = _Marks(text)
    found: list[tuple[str, float]] = []
    begin, end, weight = 0, len(text), 1.0
    while marks.unclosed:
        opening = marks.unclosed.popleft()
        _read_balanced(marks, begin, opening, weight, found)
        if marks.text[end - 1] != ")" or end - 1 not in marks.partner:
            _add(found, text[opening:end], weight)
            return found
        marks.unclosed.append(marks.partner[end - 1])
        begin, end, weight = marks.group(opening, end - 1, weight)
    _read_balanced(marks, begin, end, weight, found)
    return found


def _read_balanced(marks: _Marks, begin: int, end: int, weight: float, found: list[tuple[str, float]]) -> None:
    """A stretch in which every bracket that counts has its partner."""
    todo = [(begin, end, weight)]
    while todo:
        begin, end, weight = todo.pop()
        index = bisect_left(marks.opens, begin)
        if index == len(marks.opens) or marks.opens[index] >= end:
            _add(found, marks.text[begin:end], weight)
            continue
        opening = marks.opens[index]
        closing = marks.partner[opening]
        _add(found, marks.text[begin:opening], weight)
        todo += [(closing + 1, end, weight), marks.group(opening, closing, weight)]


def _add(found: list[tuple[str, float]], text: str, weight: float) -> None:
    if text:
        found.append((_ESCAPE.sub(r"\1", text), weight))


def _number(text: str) -> float | None:
    """What Python reads as a finite number: exponents and white space too."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
