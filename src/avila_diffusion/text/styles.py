"""Styles: pieces of prompts under a name, from AUTOMATIC1111's styles.csv. No torch."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileProblem, RequestError

PLACE = "{prompt}"
"""Where a style has this, the prompt goes there; else the style follows the prompt after a comma."""


LONGEST = 1_000_000


@dataclass(frozen=True)
class Style:
    """A name and what it adds to the prompt and to the negative prompt."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read_styles(path: str | Path, *, notes: list[str] | None = None) -> dict[str, Style]:
    """The styles of a file by name; of two with one name the later holds.

    notes: gets a line for each row that was left out or replaced. Raises FileProblem where the file cannot be read or
    has no columns `name` and `prompt`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a ValueError: not UTF-8, or a name with a null character
        raise FileProblem(f"{path}: the styles cannot be read ({error}); expected a CSV file in UTF-8") from error
    return parse_styles(text, name=path.name, notes=notes)


def parse_styles(text: str, *, name: str = "styles.csv", notes: list[str] | None = None) -> dict[str, Style]:
    """As `read_styles`, from the text of a file. Columns: name, prompt (in old files text), negative_prompt."""
    notes = [] if notes is None else notes
    rows = _rows(text.removeprefix("\ufeff"), name)
    _, header = next(rows, (1, []))
    columns = {column: index for index, column in enumerate(header)}
    prompt = columns.get("prompt", columns.get("text"))
    if "name" not in columns or prompt is None:
        found = ", ".join(header)[:80]
        raise FileProblem(f"{name}: its first line is {found!r}; expected the columns name,prompt,negative_prompt")
    styles: dict[str, Style] = {}
    for line, row in rows:
        cells = dict(enumerate(row))
        style = Style(
            cells.get(columns["name"], ""), cells.get(prompt, ""), cells.get(columns.get("negative_prompt", -1), "")
        )
        where = f"{name}, line {line}"
        if not style.name:
            notes.append(f"{where}: a style without a name is left out")
        elif len(row) > len(header):
            notes.append(
                f"{where}: style {style.name!r} has {len(row)} fields where the first line names {len(header)}, and is "
                "left out; put a text that has commas in quotation marks"
            )
        elif len(row) <= prompt:
            notes.append(f"{where}: style {style.name!r} has no prompt, and is left out")
        else:
            if style.name in styles:
                notes.append(f"{where}: style {style.name!r} comes a second time, and replaces the first")
            styles[style.name] = style
    return styles


def apply_styles(prompt: str, negative: str, styles: Iterable[Style]) -> tuple[str, str]:
    """The prompt and the negative prompt with each style merged in, in order.

    >>> apply_styles("a hill", "", [Style("ink", "ink drawing of {prompt}", "photo")])
    ('ink drawing of a hill', 'photo')

    Raises RequestError where a text would become longer than a million characters: styles can double it again and again.
    """
    for style in styles:
        prompt, negative = _merge(style.prompt, prompt), _merge(style.negative_prompt, negative)
    return prompt, negative


def find_styles(styles: Mapping[str, Style], names: Iterable[str]) -> tuple[Style, ...]:
    """The styles of these names. Raises RequestError for a name that there is not."""
    names = tuple(names)
    for name in names:
        if not isinstance(name, str):
            raise RequestError(f"a style is named by text, not {type(name).__name__}")
        if name not in styles:
            near = difflib.get_close_matches(name[:200], styles, n=3, cutoff=0.4)
            known = ", ".join(sorted(styles)[:12]) or "none"
            hint = f"the nearest are {', '.join(near)}" if near and len(styles) > 12 else f"known: {known}"
            raise RequestError(f"there is no style {name!r}; {hint}")
    return tuple(styles[name] for name in names)


def _merge(style: str, prompt: str) -> str:
    if PLACE in style:
        if len(style) + style.count(PLACE) * len(prompt) > LONGEST:
            raise RequestError(f"the styles make a prompt of more than {LONGEST:,} characters; leave some out")
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the line it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise FileProblem(f"{name}, line {line}: {error}; expected rows of CSV, texts in quotation marks") from error
