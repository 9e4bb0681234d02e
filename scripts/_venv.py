"""The virtual environment behind the scripts of this folder: `.venv` at the repository root, made when it is missing
and brought up to date when pyproject.toml or constraints.txt change.

Standard library only, and no syntax newer than Python 3.7, so that an old Python can still say in one line what is
wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM = (3, 11)
LEVELS = {"core": ".", "server": ".[server]", "dev": ".[dev]"}
"""What is installed: the package alone for people who make pictures, with what the server needs, or with all that the tests
compare against."""

BUILD = ("hatchling", "editables")
WITHOUT_DEPENDENCIES = {"core": (), "server": (), "dev": ("k-diffusion",)}
"""k-diffusion's samplers are what the tests need; what it asks for beside them is gigabytes."""

INTERRUPTED = "avila-installing"
LOG = "avila-install.log"


class Trouble(Exception):
    """Something the person at the keyboard has to put right; one line."""


def run(level: str, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> int:
    """Bring the environment to `level`, then become its Python with `command`; where it returns, an exit code."""
    with _troubles_in_one_line():
        python = prepare(level)
        environment = dict(_clean_environment(), **(env or {}))
        if os.name != "nt":  # on Windows exec would give the prompt back before the program has ended
            if cwd is not None:
                os.chdir(str(cwd))
            sys.stdout.flush()
            os.execve(str(python), [str(python), *command], environment)
        return _call([str(python), *command], cwd, environment)


def run_each(level: str, commands: list[list[str]], *, cwd: Path) -> int:
    """Bring the environment to `level`, then run every command with its Python; 1 if any failed, after all have run."""
    with _troubles_in_one_line():
        python = prepare(level)
        failed = []
        for command in commands:
            print("+ " + " ".join(command), flush=True)
            if _call([str(python), *command], cwd, _clean_environment()) != 0:
                failed.append(" ".join(command[1:3]))
        print("failed: " + "; ".join(failed) if failed else "all checks passed", flush=True)
        return 1 if failed else 0


def prepare(level: str, root: Path = ROOT) -> Path:
    """The environment's Python, after installing whatever was missing. Two at once wait for each other."""
    python = _python_of(root)
    if _is_current(level, root):
        return python
    with _lock(root):
        if not _is_current(level, root):  # the one we waited for may have done it
            _install(level, root)
    return python


def _install(level: str, root: Path) -> None:
    started = time.monotonic()
    venv = root / ".venv"
    base, version = _find_python()
    if not _is_usable(root):
        _say(f"making .venv with Python {version}")
        _make_venv(base, version, venv)
    marker = venv / INTERRUPTED  # still there next time: this install was cut short, and nothing in .venv is trusted
    marker.write_text("", encoding="utf-8")
    what = "avila_diffusion and what its tests need" if level == "dev" else "avila_diffusion and what it needs"
    _say(f"installing {what}; this is done once and takes a minute or more")
    try:
        constraints = ["-c", str(root / "constraints.txt")]
        _pip(root, [*constraints, *BUILD])
        _pip(root, [*constraints, "--no-build-isolation", "-e", LEVELS[level]])
        if WITHOUT_DEPENDENCIES[level]:
            _pip(root, [*constraints, "--no-deps", *WITHOUT_DEPENDENCIES[level]])
    except Trouble:
        marker.unlink()  # pip ended by itself, so what is there is whole; only a kill leaves the marker behind
        raise
    for name in list(LEVELS)[: list(LEVELS).index(level) + 1]:  # each holds those before it
        stamp = _stamp_of(name, root)
        stamp.with_suffix(".tmp").write_text(_key(name, root), encoding="utf-8")
        stamp.with_suffix(".tmp").replace(stamp)
    marker.unlink()
    _say(f"installed in {time.monotonic() - started:.0f} s")


def _is_current(level: str, root: Path) -> bool:
    if (root / ".venv" / INTERRUPTED).exists() or not _python_of(root).exists():
        return False
    try:
        return _stamp_of(level, root).read_text(encoding="utf-8") == _key(level, root)
    except OSError:
        return False


def _key(level: str, root: Path) -> str:
    """Changes with everything an install depends on, the place included: an editable install points at it."""
    digest = hashlib.sha256()
    for part in (level, str(root), LEVELS[level], *BUILD, *WITHOUT_DEPENDENCIES[level]):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    for name in ("pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"):
        digest.update((root / name).read_bytes() + b"\0")
    return digest.hexdigest()


def _stamp_of(level: str, root: Path) -> Path:
    return root / ".venv" / f"avila-{level}.stamp"


def _python_of(root: Path) -> Path:
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _is_usable(root: Path) -> bool:
    """A .venv that exists, was not left half made, is new enough and has pip."""
    if (root / ".venv" / INTERRUPTED).exists() or not _python_of(root).exists():
        return False
    probe = f"import sys, pip; sys.exit(0 if sys.version_info >= {MINIMUM} and sys.prefix != sys.base_prefix else 1)"
    command = [str(_python_of(root)), "-c", probe]
    return subprocess.run(command, capture_output=True, env=_clean_environment()).returncode == 0


def _make_venv(base: str, version: str, venv: Path) -> None:
    try:
        if venv.exists():
            shutil.rmtree(str(venv))
        venv.mkdir()
        (venv / INTERRUPTED).write_text("", encoding="utf-8")
    except OSError as error:
        raise Trouble(f"{venv} cannot be made anew ({error}); close what uses it, or delete it by hand") from None
    made = subprocess.run(
        [base, "-m", "venv", str(venv)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_clean_environment()
    )
    if made.returncode != 0:
        raise Trouble(explain_venv(made.stdout.decode("utf-8", "replace"), version))


def explain_venv(output: str, version: str) -> str:
    """One line out of what `python -m venv` said when it failed."""
    if "ensurepip" in output or "No module named" in output:
        name = f"python{'.'.join(version.split('.')[:2])}-venv"
        return f"this Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install {name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "no virtual environment could be made: " + (lines[-1] if lines else "python -m venv said nothing")


def _pip(root: Path, arguments: list[str]) -> None:
    """`pip install`, shown as one line that changes where there is a terminal, and kept in a log."""
    log = root / ".venv" / LOG
    command = [str(_python_of(root)), "-m", "pip", "install", "--progress-bar", "off", *arguments]
    environment = _clean_environment()
    environment.update(PYTHONIOENCODING="utf-8", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    for name in ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"):  # each would send the packages elsewhere
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        cwd=str(root),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        close_fds=os.name == "nt",  # elsewhere pip keeps our lock, should it outlive us
    )
    output = []
    try:
        for raw in process.stdout or ():
            line = raw.decode("utf-8", "replace").rstrip()
            output.append(line)
            if line.lstrip().startswith(("Collecting ", "Downloading ", "Using cached ", "Installing ", "Building ")):
                _show(line.strip())
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        _show("")
        log.write_text("\n".join([" ".join(command), *output, ""]), encoding="utf-8")
    if code != 0:
        raise Trouble(f"{explain_pip(output)} (all of pip's words: {log})")


UNREACHED = (
    "ConnectTimeout",
    "Connection refused",
    "Name or service not known",
    "NameResolutionError",
    "NewConnectionError",
    "ProxyError",
    "Read timed out",
    "SSLError",
    "Temporary failure in name resolution",
    "getaddrinfo failed",
)
"""How pip's log names a network that is not there."""


def explain_pip(output: list[str]) -> str:
    """One line out of what pip said when it failed."""
    text = "\n".join(output)
    if any(word in text for word in UNREACHED):
        return "no package index could be reached; check the network, or name an index in PIP_INDEX_URL"
    if "No space left" in text or "not enough space" in text:
        return "the disk is full; the packages need about 2 GB"
    stripped = [line.strip() for line in output if line.strip()]
    errors = [line[len("error:") :].strip() for line in stripped if line.lower().startswith("error:")]
    missing = [line for line in errors if line.startswith("No matching distribution found for ")]
    if missing:
        return f"the package index has no {missing[-1].rsplit(' ', 1)[1]} for this Python and this system"
    return "pip failed: " + (errors[0] if errors else stripped[-1] if stripped else "it said nothing")


def _find_python() -> tuple[str, str]:
    """The Python to build on: this one, or where it is too old, a newer one that is installed beside it."""
    if sys.version_info >= MINIMUM:
        inside = sys.prefix != sys.base_prefix  # in a virtual environment, perhaps the very one to be made anew
        path = getattr(sys, "_base_executable", sys.executable) if inside else sys.executable
        return str(path), sys.version.split()[0]
    for name in [f"python3.{minor}" for minor in range(14, MINIMUM[1] - 1, -1)] + ["py", "python3", "python"]:
        candidate = shutil.which(name)
        probe = f"import sys; print(sys.version.split()[0]); sys.exit(0 if sys.version_info >= {MINIMUM} else 1)"
        if candidate:
            answer = subprocess.run([candidate, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if answer.returncode == 0:
                return candidate, answer.stdout.decode("ascii", "replace").strip()
    found = f"{sys.version.split()[0]} at {sys.executable}"
    raise Trouble(f"Python 3.11 or newer is needed, and this is {found}; install one and run this again")


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Held by one process at a time, and let go by the system however that process ends."""
    waiting = False
    with (root / ".venv.lock").open("a+b") as file:
        if os.name != "nt":
            os.set_inheritable(file.fileno(), True)
        while not _take(file.fileno()):
            if not waiting:
                _say("another install is under way in .venv; waiting for it")
                waiting = True
            time.sleep(0.3)
        yield


def _take(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _clean_environment() -> dict[str, str]:
    """The environment without what would make the virtual environment's Python look at another's library."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}


def _call(command: list[str], cwd: Path | None, env: dict[str, str]) -> int:
    """Run to the end; on Ctrl-C the child has it too, and we wait for what it makes of it."""
    process = subprocess.Popen(command, cwd=None if cwd is None else str(cwd), env=env)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


@contextlib.contextmanager
def _troubles_in_one_line() -> Iterator[None]:
    try:
        yield
    except Trouble as trouble:
        _say(f"error: {trouble}")
        sys.exit(1)
    except OSError as error:
        _say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say("stopped; the next run begins the install again")
        sys.exit(130)


def _say(text: str) -> None:
    """One line on stderr, whatever the console's encoding can show of it."""
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    line = " ".join(f"avila: {text}".split())
    sys.stderr.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stderr.flush()


def _show(text: str) -> None:
    """One line that overwrites itself; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        return
    width = max(20, shutil.get_terminal_size().columns - 1)
    line = (text[: width - 1] if text else "").ljust(width).encode("ascii", "replace").decode("ascii")
    sys.stderr.write("\r" + line + "\r")
    sys.stderr.flush()
