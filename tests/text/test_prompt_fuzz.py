"""Any text is read: nothing is raised, time grows with the length and not with its square, nesting has no limit."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator

import pytest

from avila_diffusion.text.explain import explain_prompt
from avila_diffusion.text.prompt import (
    parse_attention,
    print_attention,
    read_prompt,
    schedule_prompt,
    split_and,
    strip_comments,
    take_networks,
)

READERS: dict[str, Callable[[str], object]] = {
    "attention": parse_attention,
    "comfyui": lambda text: parse_attention(text, numbers="comfyui"),
    "schedule": lambda text: schedule_prompt(text, 4),
    "parts": split_and,
    "networks": take_networks,
    "comments": strip_comments,
}
ATOMS = [
    "(",
    "(",
    "[",
    "[",
    ")",
    "]",
    "|",
    ":",
    ":1.2)",
    ":3]",
    ":0.5]",
    ": .5 ]",
    ":1e9]",
    ":1..2)",
    "\\",
    "\\(",
    "\\\n",
]
ATOMS += [
    "BREAK",
    " AND ",
    ":-1",
    "a",
    "b c",
    " ",
    "\n",
    ",",
    "é",
    "<lora:",
    "<",
    ">",
    "=",
    "#",
    "\0",
    "\ud800",
    "١",
    "猫",
]


def read_random(count: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        text = "".join(draw.choices(ATOMS, k=draw.randrange(20)))
        for part in read_prompt(text).parts:
            for segment in schedule_prompt(
                part.text, 6, old_timelines=draw.random() < 0.2, hires=draw.choice([None, (9,)])
            ):
                pieces = parse_attention(segment.text)
                assert parse_attention(print_attention(pieces)) == pieces, text
                parse_attention(segment.text, numbers="comfyui")


def test_twenty_thousand_texts() -> None:
    read_random(20_000, 1)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_million_texts(seed: int) -> None:
    read_random(100_000, seed)


def test_explaining_any_text() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(ATOMS, k=draw.randrange(20)))
        for negative in (False, True):
            assert explain_prompt(text, steps=3, calls=6, negative=negative).lines()


def test_turns_of_a_long_prompt_are_put_together_once() -> None:
    segments = schedule_prompt("[a|b]" * 10_000, 1_000)
    assert len(segments) == 1_000
    assert len({id(segment.text) for segment in segments}) == 2


def nested(opening: str, closing: str = "", middle: str = "a") -> Callable[[int], str]:
    return lambda count: opening * count + middle + closing * count


SHAPES = {
    "(": nested("("),
    "()": nested("(", ")"),
    "(()": nested("(()"),
    "[": nested("["),
    "[]": nested("[", "]"),
    "([])": nested("([", ")]"),
    "(:1.2)": nested("(a", ":1.2)"),
    "[::1]": nested("[a:", ":1]"),
    "[|]": nested("[a|", "]"),
    "[:]": nested("[a:", "]"),
    "[:::]": nested("[:::", "]"),
    "(a[b)c]": nested("(a[b)c]"),
    ")": nested(")"),
    "\\": nested("\\"),
    "spaces": nested(" "),
    "spaces before BREAK": nested(" ", " BREAK"),
    ": spaces": nested(" ", middle=":"),
    "digits": nested("1", middle=":"),
    "<a:": nested("<a:"),
    "<a:>": nested("<a:>"),
    "<": nested("<"),
    "AND": nested("AND "),
    "BREAK": nested("BREAK "),
    "#": nested("\n#"),
}


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Collecting garbage takes time that grows with all that lives."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_time_grows_with_the_length(shape: Callable[[int], str]) -> None:
    for name, read in READERS.items():
        short, long = (min(seconds(read, shape(count)) for _ in range(2)) for count in (1_000, 20_000))
        assert long < 100 * max(short, 0.001), f"{name}: {short} s, {long} s"  # linear is 20 times, the square 400


def seconds(read: Callable[[str], object], text: str) -> float:
    started = time.process_time()
    read(text)
    return time.process_time() - started


@pytest.mark.parametrize("name", READERS)
def test_nesting_has_no_limit(name: str) -> None:
    for shape in ("(", "()", "[", "[]", "[::1]", "[|]"):
        READERS[name](SHAPES[shape](30_000 if len(shape) < 3 else 10_000))
