"""The command line: `avila COMMAND`. One file per command family, each importing its rooms only when it runs.

`main` turns whatever happens into an exit code: 0 done, 1 the world was wrong (a file, the memory, the disk), 2 the
call was wrong, 130 stopped with Ctrl-C. Errors are one line on stderr; AVILA_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys

from ..errors import AvilaError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    from .parser import one_line

    _survive_narrow_consoles()
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        _drop_stdout()
        return 0
    except KeyboardInterrupt:
        return _fail("stopped; no unfinished picture was written", 130)
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
        if _is_out_of_memory(error):
            return _fail("not enough memory; ask for a smaller picture, a smaller batch or --dtype bfloat16", 1)
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
    print(f"avila: error: {message}", file=sys.stderr)
    return code


def _bug(error: Exception) -> int:
    from .parser import one_line

    hint = "" if os.environ.get("AVILA_DEBUG") else "; set AVILA_DEBUG=1 for the traceback"
    return _fail(f"{type(error).__name__}: {one_line(error)} (this is a bug{hint})", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, a GPU's, or the processor allocator's, which is a plain RuntimeError of torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    said = str(error).lower()
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or ("allocate" in said and "memory" in said)


def _survive_narrow_consoles() -> None:
    """A Windows console in cp1252 or cp850 shows an escape for what it lacks, where Python would stop with an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """The reader has gone; what is still buffered must not fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
