"""Emphasis: published cases, cases worked by hand, and a slow reading that keeps no books, on random text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avila_diffusion.text.prompt import Piece, parse_attention, print_attention

PUBLISHED = json.loads((Path(__file__).parent / "published_prompts.json").read_text(encoding="utf-8"))["examples"]
ATOMS = ["(", "[", ")", "]", ":", ":1.2)", ": -0.5 )", ":1.0)", ":2", "\\", "\\(", "BREAK", " BREAK ", "a", "b c", " "]
ATOMS += ["\n", ",", "é", "BREAKS", "1.3", "|", "-1", "<lora:x:1>", "AND", ".5]", ":1.2.3)", ":nan)", ":1e999)"]
PROMPTS = st.one_of(st.lists(st.sampled_from(ATOMS), max_size=16).map("".join), st.text())


def pairs(text: str, **options: Any) -> list[tuple[str, float]]:
    return [(piece.text, piece.weight) for piece in parse_attention(text, **options)]


@pytest.mark.parametrize("case", [case for case in PUBLISHED if case["fn"] == "parse_prompt_attention"], ids=str)
def test_published(case: dict[str, Any]) -> None:
    assert [list(pair) for pair in pairs(case["arg"])] == case["expected"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("(a:0)b", [("a", 0.0), ("b", 1.0)]),
        ("(a: +1.5 )", [("a", 1.5)]),
        ("[a]", [("a", 1 / 1.1)]),
        ("[a:1.5]", [("a:1.5", 1 / 1.1)]),  # no numbers in square brackets
        ("a:1.5)", [("a:1.5)", 1.0)]),
        ("a)b]", [("a)b]", 1.0)]),
        ("(a[b)c]", [("a", 1.1), ("b", 1.1 * (1 / 1.1)), ("c", 1 / 1.1)]),
        # The last bits tell in which order brackets multiply: as they are closed.
        ("(((a:1.3):1.3):0.7)", [("a", 1.3 * 1.3 * 0.7)]),
        ("([(a:1.3)]:1.3)", [("a", 1.3 * (1 / 1.1) * 1.3)]),
        ("[((a:1.3):1.3)", [("a", 1.3 * 1.3 * (1 / 1.1))]),
        ("(a", [("a", 1.1)]),
        ("((a]", [("a]", 1.1 * 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("\\a\\\\\\", [("a\\", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("BREAK\n BREAK", [("", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("", 1.0)]),
        ("BREAKS aBREAK", [("BREAKS aBREAK", 1.0)]),
        ("(a BREAK b:2)", [("a", 2.0), ("BREAK", -2.0), ("b", 2.0)]),
        ("(x:1.3)(y:1.3) z", [("xy", 1.3), (" z", 1.0)]),
        ("(a:" + "9" * 400 + ")", [("a", 1.7976931348623157e308)]),
    ],
)
def test_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(text) == expected


def test_break_is_a_marker_outside_brackets_only() -> None:
    assert [piece.is_break for piece in parse_attention("a BREAK (b BREAK c)")] == [False, True, *[False] * 4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((a:1.5))", [("a", 1.5)]),
        ("((a):1.5)", [("a", 1.5 * 1.1)]),
        ("(a (b:0.5) c:1.5)", [("a ", 1.5), ("b", 0.5), (" c", 1.5)]),
        ("(a)(b)", [("a", 1.1), ("b", 1.1)]),
        ("[a] BREAK", [("[a] BREAK", 1.0)]),
        ("\\(a\\) (b\\):1.2)", [("(a) ", 1.0), ("b)", 1.2)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:nan)(b:inf)", [("a:nan", 1.1), ("b:inf", 1.1)]),
        ("(a b", [("(a b", 1.0)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("a) ((b)", [("a) (", 1.0), ("b", 1.1)]),
        ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
        ("((a(:1.2)", [("(a(", 1.2)]),
        ("BREAK", [(" BREAK", 1.0)]),
    ],
)
def test_comfyui_by_hand(text: str, expected: list[tuple[str, float]]) -> None:
    assert pairs(text, numbers="comfyui") == expected


def slowly(text: str) -> list[tuple[str, float]]:
    """Brackets are resolved one at a time, by multiplying all characters behind the opening one."""
    characters: list[tuple[str, list[float]]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(shape: str, factor: float) -> None:
        for _, factors in characters[opened[shape].pop() :]:
            factors.append(factor)

    index = 0
    while index < len(text):
        character, rest = text[index], text[index:]
        number = re.match(r":\s*([+-]?[.\d]+)\s*\)", rest)
        if character == "\\":
            index += 2 if rest[1:2] in tuple("()[]\\") else 1
            characters += [(rest[1], [])] if rest[1:2] in tuple("()[]\\") else []
            continue
        if character in opened:
            opened[character].append(len(characters))
        elif number and opened["("] and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", number[1]):
            multiply("(", float(number[1]))
            index += number.end()
            continue
        elif character == ")" and opened["("]:
            multiply("(", 1.1)
        elif character == "]" and opened["["]:
            multiply("[", 1 / 1.1)
        else:
            characters.append((character, []))
        index += 1
    for shape, factor in (("(", 1.1), ("[", 1 / 1.1)):
        while opened[shape]:
            multiply(shape, factor)
    found: list[tuple[str, float]] = []
    for character, factors in characters:
        weight = 1.0
        for factor in factors:
            weight *= factor
        if found and found[-1][1] == weight:
            found[-1] = (found[-1][0] + character, weight)
        else:
            found.append((character, weight))
    return found


@given(PROMPTS)
def test_as_slowly(text: str) -> None:
    text = re.sub("BREAK|9{300}|1e999", "", text)
    # Text that is empty, after a backslash that escapes nothing, has a weight too; a reading by characters has none.
    fast: list[tuple[str, float]] = []
    for part, weight in pairs(text):
        if part and fast and fast[-1][1] == weight:
            fast[-1] = (fast[-1][0] + part, weight)
        elif part:
            fast.append((part, weight))
    assert fast == slowly(text)


@given(PROMPTS)
def test_a_printed_prompt_is_read_as_it_was(text: str) -> None:
    pieces = parse_attention(text)
    assert parse_attention(print_attention(pieces)) == pieces


@given(PROMPTS)
def test_pieces_of_a_parse(text: str) -> None:
    pieces = parse_attention(text)
    assert pieces
    assert all(abs(piece.weight) < float("inf") for piece in pieces)
    assert all(one.weight != other.weight for one, other in pairwise(pieces))
    comfy = parse_attention(text, numbers="comfyui")
    assert not any(piece.is_break for piece in comfy)


@given(st.text(alphabet="ab ,é:1", max_size=30))
def test_comfyui_loses_no_text_without_brackets(text: str) -> None:
    assert parse_attention(text, numbers="comfyui") == (Piece(text, 1.0),)


def test_print_is_for_people_too() -> None:
    assert print_attention(parse_attention("a (red:1.25) car BREAK [x]")) == (f"a (red:1.25) car BREAK (x:{1 / 1.1!r})")
