"""Whose reading of a prompt: what each program knows of the language, and what it takes for words. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Dialect = Literal["a1111", "comfyui", "diffusers"]
Emphasis = Literal["Original", "No norm", "Ignore", "None"]

_PROGRAMS = {"comfyui": "ComfyUI", "diffusers": "diffusers"}
_COMMON = r"(?<!\\)\[[^\[\]]*\]|\bAND\b|\bBREAK\b|#[^\n]*"
# No bracket is looked past the next one of its shape: time is linear.
_MARKS = {
    "comfyui": re.compile(_COMMON),
    "diffusers": re.compile(_COMMON + r"|(?<!\\)\([^()]*\)|(?:^|(?<=\s))embedding:\S*"),
}
_MOST = 8
_SHOWN = 60


def unknown_marks(texts: Iterable[str], dialect: Dialect) -> tuple[str, ...]:
    """A line for each thing in these texts that means something in AUTOMATIC1111's language, and nothing in this one.

    >>> unknown_marks(["a [b:c:3] AND d"], "comfyui")
    ('ComfyUI knows no [b:c:3]; it was read as words', 'ComfyUI knows no AND; it was read as words')
    """
    if dialect == "a1111":
        return ()
    found = (match[0] for text in texts for match in _MARKS[dialect].finditer(text))
    marks = list(dict.fromkeys(mark if len(mark) <= _SHOWN else mark[:_SHOWN] + "…" for mark in found))
    program = _PROGRAMS[dialect]
    notes = [f"{program} knows no {' '.join(mark.split())}; it was read as words" for mark in marks[:_MOST]]
    if len(marks) > _MOST:
        notes.append(f"{program} knows {len(marks) - _MOST} more such things no better; they were read as words")
    return tuple(notes)
