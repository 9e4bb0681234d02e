"""Styles on the command line: `--style NAME`, `--styles-file FILE`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import RequestError

if TYPE_CHECKING:
    from ..text.styles import Style


def add_style_options(group: argparse._ActionsContainer) -> None:
    """Add the options that `styles_of` reads."""
    group.add_argument(
        "--style", metavar="NAME", action="append", help="merge this style into both prompts; repeatable, in order"
    )
    group.add_argument(
        "--styles-file", metavar="FILE", help="the styles; default: styles.csv in the models folder or beside it"
    )


def styles_of(options: argparse.Namespace, notes: list[str]) -> tuple[Style, ...]:
    """The styles asked for. notes: receives a line for each row of the file that was left out or replaced.

    Raises RequestError for a name that there is not, FileProblem where there is no file, or it is none of styles.
    """
    if not options.style:
        if options.styles_file is not None:
            raise RequestError("--styles-file has no effect without --style; add that, or leave it out")
        return ()
    from ..styling import choose_styles

    return choose_styles(options.style, options.styles_file, options.models_dir, notes=notes)
