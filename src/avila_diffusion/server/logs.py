"""What the server writes to its log: a line each, whatever stands in it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

LEVELS = {-1: logging.WARNING, 0: logging.INFO, 1: logging.DEBUG}


def set_up(verbosity: int, as_json: bool, stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr. verbosity: -1 warnings, 0 what happens, 1 every call too."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("avila").setLevel(LEVELS[max(-1, min(1, verbosity))])


class TextLines(logging.Formatter):
    """For people. A traceback follows its line, indented."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("avila.")
        line = f"{_time(record):%Y-%m-%d %H:%M:%S} {record.levelname.lower()} {name}: {one_line(record.getMessage())}"
        trace = _traceback(self, record)
        return "\n".join([line, *(f"    {one_line(part)}" for part in trace)])


class JsonLines(logging.Formatter):
    """For programs: a JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": _time(record).astimezone(UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = _traceback(self, record)
        if trace:
            values["traceback"] = "\n".join(trace)
        return json.dumps(values, ensure_ascii=True)


def one_line(text: str) -> str:
    """The text with everything that could end the line, move the cursor or colour it written out."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created).astimezone()


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    return formatter.formatException(record.exc_info).split("\n") if record.exc_info else []
