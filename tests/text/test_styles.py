"""styles.csv, as AUTOMATIC1111 and spreadsheets write it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avila_diffusion.errors import FileProblem, RequestError
from avila_diffusion.text.prompt import Style, apply_styles, find_styles, parse_styles, read_styles

FILE = (
    '\ufeffname,prompt,negative_prompt\r\nink,"ink drawing of {prompt}, fine",photo\r\n"a, b", "two\nlines ""q""",\r\n'
)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "styles.csv"
    path.write_bytes(FILE.encode())
    notes: list[str] = []
    assert read_styles(path, notes=notes) == {
        "ink": Style("ink", "ink drawing of {prompt}, fine", "photo"),
        "a, b": Style("a, b", 'two\nlines "q"', ""),
    }
    assert notes == []


def test_old_files_call_the_prompt_text() -> None:
    assert parse_styles("name,text\nink,pen\n") == {"ink": Style("ink", "pen")}


def test_rows_that_are_left_out_are_named() -> None:
    notes: list[str] = []
    styles = parse_styles(
        'name,prompt,negative_prompt\n\n"a\nb",x\n,y,z\nc\nd,e,f,g\nh,1,2\nh,3,4\n', name="my.csv", notes=notes
    )
    assert styles == {"a\nb": Style("a\nb", "x"), "h": Style("h", "3", "4")}
    assert [note.partition(":")[0] for note in notes] == [f"my.csv, line {line}" for line in (5, 6, 7, 9)]
    assert [word in note for word, note in zip(("name", "'c'", "4 fields", "second"), notes, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "prompt\nx\n", "name,negative_prompt\nx,y\n", 'name,prompt\n"' + "x" * 140_000]
)
def test_files_that_are_none(text: str) -> None:
    with pytest.raises(FileProblem, match=r"styles\.csv.*expected"):
        parse_styles(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"name,prompt\n\xe9,a\n")
    for name in ("latin.csv", "none.csv", "a\0b.csv"):
        with pytest.raises(FileProblem, match="expected a CSV file"):
            read_styles(tmp_path / name)


@pytest.mark.parametrize(
    ("prompt", "style", "expected"),
    [
        ("hill", "pen", "hill, pen"),
        (" hill ", " pen ", "hill, pen"),
        ("", "pen", "pen"),
        ("hill ", "", "hill"),
        (" hill", "a {prompt}, {prompt}", "a  hill,  hill"),
        ("{prompt}", "a {prompt}", "a {prompt}"),
    ],
)
def test_merging(prompt: str, style: str, expected: str) -> None:
    assert apply_styles(prompt, "", [Style("s", style)])[0] == expected
    assert apply_styles("", prompt, [Style("s", "", style)])[1] == expected


def test_styles_in_order() -> None:
    styles = parse_styles("name,prompt,negative_prompt\na,one,no\nb,two {prompt},\n")
    assert apply_styles("x", "n", find_styles(styles, ["a", "b"])) == ("two x, one", "n, no")
    with pytest.raises(RequestError, match="no style 'c'; known: a, b"):
        find_styles(styles, ["c"])


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=12)


@given(st.dictionaries(TEXTS.filter(lambda text: text == text.lstrip()), st.tuples(TEXTS, TEXTS), max_size=4))
def test_what_is_written_is_read(styles: dict[str, tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([("name", "prompt", "negative_prompt"), *((name, *texts) for name, texts in styles.items())])
    notes: list[str] = []
    assert parse_styles(file.getvalue(), notes=notes) == {name: Style(name, *texts) for name, texts in styles.items()}
    assert notes == []


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_styles(text)
    except FileProblem:
        return
    assert "name" in text
