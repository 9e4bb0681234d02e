"""A journal's file: taken by one process, opened again by one, and what is said where that cannot be."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from io import FileIO
from pathlib import Path

from ..errors import JournalProblem, OutputProblem, RequestError
from .records import MAGIC

_LOCKED_BYTE = 1 << 40
"""Of the file: far behind its end, because Windows keeps others from reading what is locked."""


def open_journal(path: Path, mode: str) -> FileIO:
    try:
        return FileIO(path, mode)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise JournalProblem(f"the journal {path} cannot be opened ({said}); give one that is there") from None


def claim(path: Path) -> FileIO:
    """An empty file of that name, held for this process. Raises OutputProblem where there is another of that name."""
    if path == Path():
        raise RequestError("the journal has an empty name; give it the name of a file")
    try:
        if path.is_dir():
            raise OutputProblem(f"the journal {path} is a folder; name a file in it, such as {path / 'run.journal'}")
        if path.exists() and not path.is_file():
            raise OutputProblem(f"the journal {path} is a device or pipe; name a file")
        if path.exists() and path.stat().st_size:
            raise _is_there(path)
        stream = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
    except FileNotFoundError:
        raise OutputProblem(
            f"the journal {path} cannot be written: the folder {path.parent} is not there; make it, or name another place"
        ) from None
    except (OSError, ValueError) as error:
        raise not_written(path, error) from None
    try:
        hold(stream, path)
        if not os.path.samestat(os.fstat(stream.fileno()), path.stat()) or path.stat().st_size:
            raise _is_there(path)  # another run has put its own there meanwhile
    except BaseException as error:
        stream.close()
        if isinstance(error, OSError):
            raise not_written(path, error) from None
        raise
    return stream


def _is_there(path: Path) -> OutputProblem:
    ours = False
    with contextlib.suppress(OSError), path.open("rb") as stream:
        ours = stream.read(len(MAGIC)) == MAGIC
    if ours:
        return OutputProblem(
            f"{path} is there already; go on with it by `avila resume {path}`, or name another journal"
        )
    return OutputProblem(f"{path} is there already and is not a journal; name another journal")


def hold(stream: FileIO, path: Path) -> None:
    """Hold the file for this process; the system lets it go with the process, however that ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            stream.seek(_LOCKED_BYTE)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise JournalProblem(f"another run is writing to {path}; wait for it or stop it") from None


def not_written(path: Path, error: OSError | ValueError) -> OutputProblem:
    said = getattr(error, "strerror", None) or error
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    way_out = "free some space, or name another place" if full else "name another place"
    return OutputProblem(f"the journal {path} cannot be written ({said}); {way_out}")
