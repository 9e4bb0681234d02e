"""What each program reads in the same characters, and what is told about what it does not know."""

from __future__ import annotations

import random
import time

import pytest

from avila_diffusion.text.dialects import unknown_marks
from avila_diffusion.text.explain import PromptReport, explain_prompt
from avila_diffusion.text.prompt import Dialect, read_prompt
from avila_diffusion.text.reading import TextReader
from avila_diffusion.text.tokenizer import clip_tokenizer

encode = clip_tokenizer().encode
OTHERS: tuple[Dialect, ...] = ("comfyui", "diffusers")


def explained(text: str, dialect: Dialect, **named: object) -> PromptReport:
    return explain_prompt(text, steps=4, dialect=dialect, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "comfyui", "diffusers"),
    [
        ("a (red:1.2) (car)", [], ["(red:1.2)", "(car)"]),
        ("a [red] [b:c:3]", ["[red]", "[b:c:3]"], ["[red]", "[b:c:3]"]),
        ("a BREAK b AND c AND d", ["BREAK", "AND"], ["BREAK", "AND"]),
        ("a # no\nb", ["# no"], ["# no"]),
        ("a \\[b\\] \\(c\\) BREAKS BAND", [], []),
        ("a embedding:sks b", [], ["embedding:sks"]),
        ("[b:\nc:3]", ["[b: c:3]"], ["[b: c:3]"]),
    ],
)
def test_what_a_dialect_does_not_know_is_told(text: str, comfyui: list[str], diffusers: list[str]) -> None:
    for dialect, expected in zip(OTHERS, (comfyui, diffusers), strict=True):
        notes = unknown_marks([text], dialect)
        assert [note.split(" knows no ")[1] for note in notes] == [f"{mark}; it was read as words" for mark in expected]
    assert unknown_marks([text], "a1111") == ()


def test_many_things_are_told_in_few_lines() -> None:
    notes = unknown_marks([" ".join(f"[{number}]" for number in range(50))], "comfyui")
    assert len(notes) == 9
    assert "42 more" in notes[-1]


@pytest.mark.parametrize("dialect", OTHERS)
@pytest.mark.parametrize("shape", ["[:", "[", "(", ":", "#", "[(", "embedding:", " embedding:x"])
def test_time_is_linear(dialect: Dialect, shape: str) -> None:
    """Of 100,000 characters, the most that a prompt has; the square of that took 11 s."""
    text = shape[0] + shape[-1] * 50_000 + shape * (50_000 // len(shape))
    started = time.process_time()
    unknown_marks([text], dialect)
    assert time.process_time() - started < 1


def test_a_comment_has_no_tags() -> None:
    assert read_prompt("a # <lora:x:1>\nb").networks == ()
    assert [tag.name for tag in read_prompt("a # <lora:x:1>\nb", dialect="comfyui").networks] == ["x"]


def test_comfyui_ends_the_name_of_an_embedding_at_any_white_space() -> None:
    reader = TextReader("comfyui", names=("sks",), vectors=lambda name: 2)
    for text in (
        "a embedding:sks house",
        "a embedding:sks\nhouse",
        "a\nembedding:SKS\thouse",
        "a embedding:sks\n house",
    ):
        (chunk,) = reader.take(text).chunks
        assert chunk.tokens == (*encode("a"), 0, 0, *encode("house")), text
    (chunk,) = reader.take("a embedding:sks, embedding:no\nhouse").chunks
    assert chunk.tokens == (*encode("a"), 0, 0, *encode(","), *encode("house"))


def test_comfyui_is_explained() -> None:
    report = explained("((a:1.3):2) [b] # c", "comfyui")
    (part,) = report.parts
    (segment,) = part.segments
    assert segment.calls == (0, 3)
    assert [(piece.text, piece.weight) for piece in segment.pieces] == [("a", 1.3), (" [b] # c", 1.0)]
    assert [token[1:] for token in segment.chunks[0].tokens[:2]] == [("a</w>", 1.3), ("[</w>", 1.0)]
    assert [note.split(";")[0] for note in report.notes] == ["ComfyUI knows no [b]", "ComfyUI knows no # c"]
    chunks = explained("cat " * 70 + "(" + "dog " * 7 + ":1.5)", "comfyui").parts[0].segments[0].chunks
    assert [(len(chunk.tokens), chunk.closed) for chunk in chunks] == [(70, "group"), (7, "end")]


def test_a_torn_embedding_of_comfyui_has_its_name_in_both_chunks() -> None:
    report = explained("cat " * 70 + "embedding:sks dog", "comfyui", embeddings=["sks"], vectors=lambda name: 10)
    first, second = report.parts[0].segments[0].chunks
    assert [token[1] for token in first.tokens[69:]] == ["cat</w>", *["sks"] * 5]
    assert [token[1] for token in second.tokens] == [*["sks"] * 5, "dog</w>"]
    assert first.closed == "full"


def test_diffusers_is_explained() -> None:
    report = explained("a (b:1.3) AND c " + "dog " * 80, "diffusers")
    (segment,) = report.parts[0].segments
    (chunk,) = segment.chunks
    assert len(chunk.tokens) == 75
    assert {token[2] for token in chunk.tokens} == {1.0}
    assert len(segment.pieces) == 1
    over = len(encode("a (b:1.3) AND c " + "dog " * 80)) - 75
    assert report.notes[-1] == f"diffusers reads 75 tokens; the last {over} of a prompt were left out"


@pytest.mark.parametrize(
    ("emphasis", "expected"),
    [
        ("Original", [("a ", 1.0), ("b", 1.2), ("", 1.0), ("BREAK", -1.0), ("c", 1.0)]),
        ("No norm", [("a ", 1.0), ("b", 1.2), ("", 1.0), ("BREAK", -1.0), ("c", 1.0)]),
        ("Ignore", [("a ", 1.0), ("b", 1.0), ("", 1.0), ("BREAK", -1.0), ("c", 1.0)]),
        ("None", [("a (b:1.2) BREAK c", 1.0)]),
    ],
)
def test_modes_of_emphasis_are_explained(emphasis: str, expected: list[tuple[str, float]]) -> None:
    (segment,) = explained("a (b:1.2) BREAK c", "a1111", emphasis=emphasis).parts[0].segments
    assert [(piece.text, piece.weight) for piece in segment.pieces] == expected
    assert len(segment.chunks) == (1 if emphasis == "None" else 2)


@pytest.mark.parametrize("dialect", OTHERS)
def test_any_text_is_explained(dialect: Dialect) -> None:
    draw = random.Random(1)
    atoms = [
        "(",
        ")",
        "[",
        "]",
        ":1.2)",
        ":",
        "embedding:",
        "sks",
        ",",
        " ",
        "\n",
        "\\",
        "#",
        "AND",
        "\ud800",
        "<lora:x>",
    ]
    for _ in range(300):
        text = "".join(draw.choices(atoms, k=draw.randrange(16)))
        assert explained(
            text, dialect, embeddings=["sks"], vectors=lambda name: 3, negative=draw.random() < 0.5
        ).lines()


def test_a_break_inside_brackets_is_told() -> None:
    (note,) = explained("(a BREAK b:1.2)", "a1111").notes
    assert "a word of weight -1.2" in note
    for text in ("(a:1.2) BREAK b", "(BREAKS:1.2)", "BREAK"):
        assert explained(text, "a1111").notes == (), text
    assert explained("(a BREAK b:1.2)", "a1111", emphasis="Ignore").notes == (note,)
