"""The command line: `avila COMMAND`. One file per command family, each importing its rooms only when it runs.

`main` turns whatever happens into an exit code: 0 done, 1 the world was wrong (a file, the memory, the disk), 2 the
call was wrong, 130 stopped with Ctrl-C, 143 ended by SIGTERM (other signals: 128 and their number). Errors are one line
on stderr; AVILA_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ..errors import AvilaError, is_out_of_memory

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    with contextlib.ExitStack() as stack:
        if sys.stderr is None:  # as under pythonw on Windows; print would take stdout in its place
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        return _answer(sys.argv[1:] if argv is None else argv)


def _answer(argv: list[str]) -> int:
    from .parser import one_line

    _survive_narrow_consoles()
    try:
        with _ending_in_order():
            return _run(argv)
    except BrokenPipeError:
        drop_stdout()
        return 0
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, _Ended) else signal.SIGINT
        return _fail("stopped; nothing unfinished was left behind", 128 + number)
    except AvilaError as error:
        return _fail(one_line(error), error.exit_code)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == __name__.partition(".")[0]:
            return _bug(error)
        return _fail(f"{name or 'a package'} is not installed for {sys.executable}; pip install {name}", 1)
    except OSError as error:
        return _fail(one_line(error), 1)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail("not enough memory; ask for a smaller picture or batch, or for bfloat16", 1)
        return _bug(error)


def _run(argv: list[str]) -> int:
    from .parser import build_parser

    try:
        options = build_parser().parse_args(argv)
        code = int(options.run(options))
    except SystemExit as answered:  # argparse, after --help and --version
        code = answered.code if isinstance(answered.code, int) else 0
    if sys.stdout is not None:  # as it is under pythonw on Windows
        sys.stdout.flush()  # here, where a reader that has gone can still be handled
    return code


def _fail(message: str, code: int) -> int:
    if os.environ.get("AVILA_DEBUG") and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError, ValueError):  # nobody may be reading; the exit code tells
        print(f"avila: error: {message}", file=sys.stderr, flush=True)
    return code


def _bug(error: Exception) -> int:
    from .parser import one_line

    hint = "" if os.environ.get("AVILA_DEBUG") else "; set AVILA_DEBUG=1 for the traceback"
    return _fail(f"{type(error).__name__}: {one_line(error)} (this is a bug{hint})", 1)


def _survive_narrow_consoles() -> None:
    """A Windows console in cp1252 or cp850 shows an escape for what it lacks, where Python would stop with an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


class _Ended(KeyboardInterrupt):
    """Another signal than Ctrl-C's asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM, a closed terminal and Ctrl-Break unwind as Ctrl-C does, so that unfinished files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended(number)

    names = ("SIGTERM", "SIGHUP", "SIGBREAK") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # What was ignored stays so (nohup), and what somebody else handles is theirs.
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def drop_stdout() -> None:
    """The reader has gone; what is still buffered must not fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
