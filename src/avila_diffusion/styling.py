"""Styles that are asked for by name: where their file is, and what they make of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checkpoint.folders import find_styles_file
from .errors import RequestError
from .given import name_of
from .text.styles import Style, apply_styles, find_styles, read_styles


def choose_styles(
    names: str | Sequence[str],
    file: str | Path | None = None,
    models: str | Path | None = None,
    *,
    notes: list[str] | None = None,
) -> tuple[Style, ...]:
    """The styles of these names, from a styles.csv, by default the one in the models folder `models` or beside it.

    notes: receives a line for each row of the file that was left out or replaced. Raises RequestError for a name that
    there is not, FileProblem where there is no file, or it is none of styles.
    """
    if not isinstance(names, str | Sequence):
        raise RequestError(f"styles is a name or a list of names, not {type(names).__name__}")
    path = find_styles_file(models) if file is None else Path(name_of("a file of styles", file))
    found: list[str] = []
    known = read_styles(path, notes=found)
    if notes is not None:
        notes += found
    try:
        return find_styles(known, [names] if isinstance(names, str) else names)
    except RequestError as error:
        left = f" ({found[0]})" if found else ""
        raise RequestError(f"{error}, in {path}{left}") from None


def styled(
    prompt: Any, negative: Any, styles: str | Sequence[str], file: str | Path | None, models: str | Path | None
) -> tuple[Any, Any]:
    """Both prompts with the styles of these names merged in; see `choose_styles`. What is no text is left as it is."""
    if not styles:
        if file is None:
            return prompt, negative
        raise RequestError("styles_file has no effect without styles; name some, or leave it out")
    chosen = choose_styles(styles, file, models)
    if not (isinstance(prompt, str) and isinstance(negative, str)):
        return prompt, negative  # GenerateRequest refuses it
    return apply_styles(prompt, negative, chosen)
