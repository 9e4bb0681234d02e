"""Where a long prompt is cut: AUTOMATIC1111's rules, in cases worked by hand and as properties of any text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avila_diffusion.text.chunks import BACKTRACK, CHUNK, COMMA, split_chunks
from avila_diffusion.text.tokenizer import clip_tokenizer

WORD = 2368


def words(count: int, *commas: int) -> list[int]:
    """`count` different tokens, with commas at these places."""
    return [COMMA if place in commas else 1000 + place for place in range(count)]


def lengths(tokens: list[int]) -> list[int]:
    return [len(chunk) for chunk in split_chunks(tokens)]


def test_the_numbers_are_those_of_the_web_ui() -> None:
    assert (CHUNK, BACKTRACK) == (75, 20)
    assert clip_tokenizer().encode("a cat, a dog")[2] == COMMA


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], [0]),
        (words(1), [1]),
        (words(75), [75]),
        (words(76), [75, 1]),
        (words(150), [75, 75]),
        (words(151), [75, 75, 1]),
        # 75 - 54 = 21 tokens back: too far
        (words(76, 54), [75, 1]),
        # 75 - 55 = 20 tokens back: the 19 that follow the comma move on
        (words(76, 55), [56, 20]),
        (words(76, 73), [74, 2]),
        # the comma is the chunk's last token: nothing to move
        (words(76, 74), [75, 1]),
        # a comma as the 76th token opens the next chunk, and an earlier one does not count then
        (words(76, 75), [75, 1]),
        (words(76, 60, 75), [75, 1]),
        # only the last comma counts
        (words(76, 55, 60), [61, 15]),
        (words(76, 10, 54), [75, 1]),
        # with no more than 75 tokens nothing moves
        (words(75, 60), [75]),
        # the comma of the first chunk is forgotten in the second
        (words(140, 60), [61, 75, 4]),
        (words(200, 60, 130), [61, 70, 69]),
    ],
)
def test_worked_by_hand(tokens: list[int], expected: list[int]) -> None:
    assert lengths(tokens) == expected


def test_what_moves_is_what_follows_the_comma() -> None:
    tokens = words(80, 57)
    assert split_chunks(tokens) == [tokens[:58], tokens[58:]]
    assert tokens[57] == COMMA


def test_a_comma_that_opens_a_chunk_is_no_place_to_cut() -> None:
    # In small chunks it would lie within the backtrack.
    assert split_chunks([1, 2, 3, COMMA, 4, 5, 6], length=3, backtrack=3) == [[1, 2, 3], [COMMA, 4, 5], [6]]


def test_without_a_comma_nothing_moves_however_far_back_one_may_look() -> None:
    assert split_chunks([1, 2, 3, 4], length=3, backtrack=9) == [[1, 2, 3], [4]]


def test_no_backtrack() -> None:
    tokens = words(76, 70)
    assert split_chunks(tokens, backtrack=0) == [tokens[:75], tokens[75:]]


def check(tokens: list[int]) -> None:
    chunks = split_chunks(tokens)
    assert [token for chunk in chunks for token in chunk] == tokens
    assert all(0 < len(chunk) <= CHUNK for chunk in chunks) or chunks == [[]]
    for chunk, following in pairwise(chunks):
        seventy_sixth = (chunk + following)[CHUNK]
        moved = following[: CHUNK - len(chunk)]
        if moved:
            assert chunk[-1] == COMMA and len(chunk) > CHUNK - BACKTRACK
            assert COMMA not in moved and seventy_sixth != COMMA
        else:
            assert seventy_sixth == COMMA or COMMA not in chunk[CHUNK - BACKTRACK : -1] or chunk[-1] == COMMA


@given(st.lists(st.sampled_from([COMMA, *[WORD] * 12]), max_size=400))
def test_any_text(tokens: list[int]) -> None:
    check(tokens)


@given(st.integers(0, 400), st.lists(st.integers(0, 400), max_size=8))
def test_few_commas(count: int, commas: list[int]) -> None:
    check(words(count, *commas))
