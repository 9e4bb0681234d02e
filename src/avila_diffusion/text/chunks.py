"""A prompt of any length as chunks of 75 tokens, as AUTOMATIC1111 cuts it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

CHUNK = 75
"""Tokens of text in a chunk; with the start and end tokens it fills the tower's 77 places."""
COMMA = 267
"""The token "," at the end of a word."""
BACKTRACK = 20


def split_chunks(tokens: Sequence[int], length: int = CHUNK, backtrack: int = BACKTRACK) -> list[list[int]]:
    """Cut tokens into chunks of at most `length`; an empty text is one empty chunk.

    Where a chunk is full and a comma lies within its last `backtrack` tokens, what follows that comma moves to the next
    chunk, so that a phrase is not torn (AUTOMATIC1111's comma padding).
    """
    chunks: list[list[int]] = []
    chunk: list[int] = []
    comma = -1  # place of the last comma in the chunk
    for token in tokens:
        if token == COMMA:
            comma = len(chunk)
        if len(chunk) == length:
            # Where the comma is the token that does not fit, this lies behind the end, and nothing moves.
            cut = comma + 1 if comma != -1 and length - comma <= backtrack else length
            chunks.append(chunk[:cut])
            chunk, comma = chunk[cut:], -1
        chunk.append(token)
    return [*chunks, chunk]
