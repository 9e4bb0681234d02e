"""The parser of all commands: what is asked for, in which words. Nothing here knows how it is done."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from ..errors import RequestError
from ..version import __version__

EPILOG = "`avila COMMAND --help` lists a command's options. AVILA_DEBUG=1 shows the traceback of an error."


class Parser(argparse.ArgumentParser):
    """argparse, with one line where a call is wrong, and no guessing at shortened options."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message} (see {self.prog} --help)")


def build_parser() -> Parser:
    """The whole command line as it is read by `avila`."""
    from . import doctor, generate, info, listings, models, plan, prompt, replay, resume, serve, train

    parser = Parser(prog="avila", description="Pictures from Stable Diffusion checkpoints.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"avila {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    generate.add_commands(commands)
    plan.add_commands(commands)
    resume.add_commands(commands)
    replay.add_commands(commands)
    prompt.add_commands(commands)
    info.add_commands(commands)
    models.add_commands(commands)
    listings.add_commands(commands)
    train.add_commands(commands)
    serve.add_commands(commands)
    doctor.add_commands(commands)
    return parser


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def typed_text(text: str) -> str:
    """A prompt as it was typed: where the locale knows only ASCII (LC_ALL=C), Python hands its UTF-8 on in pieces.

    Raises ArgumentTypeError for bytes that are no UTF-8.
    """
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8; type it in a UTF-8 locale") from None


def add_memory_options(group: argparse._ArgumentGroup) -> None:
    """Add what says how much memory a run may take."""
    group.add_argument(
        "--memory",
        choices=("auto", "fast", "lean"),
        help="fast keeps the weights as they are computed with, lean makes them as it goes; default: what there is room for",
    )
    group.add_argument("--max-memory", metavar="SIZE", help="hold at most so much, such as 3G, or refuse")
