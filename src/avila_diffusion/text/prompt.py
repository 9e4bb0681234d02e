"""The prompt language, in the order in which a prompt is read. No torch.

styles           apply_styles      names that stand for pieces of prompts
comments         strip_comments    from # to the end of the line
networks         take_networks     <lora:name:0.8>
parts            split_and         a AND b :0.5
schedule         schedule_prompt   [a:b:0.5] [a|b]
emphasis         parse_attention   (a:1.2) BREAK
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .attention import Numbers, Piece, parse_attention, print_attention
from .dialects import Dialect, unknown_marks
from .networks import LoraWeights, NetworkTag, lora_weights, take_networks
from .schedule import Segment, schedule_prompt, segment_at
from .styles import Style, apply_styles, find_styles, parse_styles, read_styles

__all__ = [
    "AndPart",
    "Dialect",
    "LoraWeights",
    "NetworkTag",
    "Numbers",
    "Piece",
    "ReadPrompt",
    "Segment",
    "Style",
    "apply_styles",
    "find_styles",
    "lora_weights",
    "parse_attention",
    "parse_styles",
    "print_attention",
    "read_prompt",
    "read_styles",
    "schedule_part",
    "schedule_prompt",
    "segment_at",
    "split_and",
    "strip_comments",
    "take_networks",
    "unknown_marks",
    "weight_notes",
]

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))")
_COMMENT_LINE = re.compile(r"(?:\A|\n)#.*(?:\n|\Z)")
_COMMENT = re.compile(r"#.*(?:\n|\Z)")
_LARGEST = 1e300


@dataclass(frozen=True)
class AndPart:
    """One of the prompts that AND joins: its own conditioning, and how much its guidance counts."""

    text: str
    weight: float


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt before its schedule is read: its parts, at least one, and the tags that stood in it."""

    parts: tuple[AndPart, ...]
    networks: tuple[NetworkTag, ...] = ()


def read_prompt(text: str, *, negative: bool = False, dialect: Dialect = "a1111") -> ReadPrompt:
    """Comments, tags and AND, in this order. In a negative prompt tags and AND are text like any other, as in A1111.

    Other dialects know neither comments nor AND; tags are taken out for them too, which know no other way to name a LoRA.
    """
    if dialect == "a1111":
        text = strip_comments(text)
    if negative:
        return ReadPrompt((AndPart(text, 1.0),))
    text, networks = take_networks(text)
    return ReadPrompt(split_and(text) if dialect == "a1111" else (AndPart(text, 1.0),), networks)


def schedule_part(
    part: AndPart,
    steps: int,
    *,
    calls: int | None = None,
    dialect: Dialect = "a1111",
    hires: tuple[int, ...] | None = None,
) -> tuple[Segment, ...]:
    """The texts that a part stands for; see `schedule_prompt`. In other dialects it is one text for all calls."""
    if dialect == "a1111":
        return schedule_prompt(part.text, steps, calls=calls, hires=hires)
    return (Segment(steps if calls is None else calls, part.text),)


def split_and(text: str) -> tuple[AndPart, ...]:
    """The parts of a positive prompt; a negative prompt never has parts. A part may end in `:weight`, else it counts 1.

    White space at a part's end, and before its weight, goes. A prompt without AND is one part, and may have a weight too.

        >>> split_and("a cat AND a dog :0.5")
        (AndPart(text='a cat', weight=1.0), AndPart(text=' a dog', weight=0.5))

    Source: the behaviour of AUTOMATIC1111 1.10.1.
    """
    return tuple(_read_part(part) for part in _AND.split(text))


def weight_notes(parts: Sequence[AndPart]) -> tuple[str, ...]:
    """A line where a prompt without AND has a weight, which may well be the end of a time or of an address."""
    if len(parts) != 1 or parts[0].weight == 1:
        return ()
    weight = f"{parts[0].weight:g}"
    return (
        f"the prompt ends in :{weight}, which as in AUTOMATIC1111 is no text but multiplies its guidance by {weight}; "
        "put a comma behind it if it is text",
    )


def strip_comments(text: str) -> str:
    """The text without what stands from a # to the end of its line; the line feeds of such lines are joined to one.

    Source: the behaviour of AUTOMATIC1111 1.10.1 with its default settings.
    """
    return _COMMENT.sub("\n", _COMMENT_LINE.sub("\n", text))


def _read_part(text: str) -> AndPart:
    text = text.rstrip()
    words, colon, tail = text.rpartition(":")
    weight = _WEIGHT.fullmatch(tail) if colon else None
    if weight is None:
        return AndPart(text, 1.0)
    return AndPart(words.rstrip(), max(-_LARGEST, min(_LARGEST, float(weight[1]))))
