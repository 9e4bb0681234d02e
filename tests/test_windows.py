"""What works on Linux and fails on Windows, found by reading the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "scripts", "examples", "benchmarks")

POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "spwd", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os.chown",
    "os.fork",
    "os.forkpty",
    "os.getpgid",
    "os.getuid",
    "os.killpg",
    "os.mkfifo",
    "os.sched_getaffinity",
    "os.setsid",
    "os.uname",
    "signal.SIGALRM",
    "signal.SIGHUP",
    "signal.SIGKILL",
    "signal.SIGUSR1",
    "signal.alarm",
    "signal.pause",
}
PATHLIKE = re.compile(
    r"(?:^|[_.(])(?:path|paths|dir|directory|folder|root|home|cwd|parent|file|filename)\b", re.IGNORECASE
)
OPENERS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile"}
SUBPROCESS = {"run", "Popen", "check_output", "check_call", "call"}


def find_posix_modules(tree: ast.Module) -> Iterator[str]:
    """Modules that Windows does not have, imported when the file is. Inside a function they may be guarded."""
    for node in at_import(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in names:
            if name.partition(".")[0] in POSIX_MODULES:
                yield f"{node.lineno}: imports {name}"


def find_posix_names(tree: ast.Module) -> Iterator[str]:
    """Functions and signals that Windows does not have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in POSIX_NAMES:
            yield f"{node.lineno}: {ast.unparse(node)} is not on Windows"


def find_renames(tree: ast.Module) -> Iterator[str]:
    """os.rename and Path.rename fail on Windows where the target exists; replace does not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "rename":
            yield f"{node.lineno}: {ast.unparse(node.func)} fails on Windows where the target exists; use replace"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"{node.lineno}: imports os.rename" for alias in node.names if alias.name == "rename")


def find_unencoded_text(tree: ast.Module) -> Iterator[str]:
    """Text that is read or written in whatever encoding the machine happens to have."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg for keyword in node.keywords}
        if "encoding" in given or None in given:  # None: **options, which cannot be read here
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if (
            (name == "read_text" and not node.args)
            or (name == "write_text" and len(node.args) < 2)
            or (name in OPENERS and opens_text(node, name, owner))
            or (name in SUBPROCESS and given & {"text", "universal_newlines"})
        ):
            yield f"{node.lineno}: {name} of text without an encoding"


def opens_text(call: ast.Call, name: str, owner: str) -> bool:
    """Whether a call opens a file as text: its mode is absent, or a literal without b."""
    if owner in ("os", "webbrowser", "Image", "PIL.Image", "tarfile", "wave") and name == "open":
        return False
    if name in ("NamedTemporaryFile", "TemporaryFile"):
        position, default = 0, "w+b"
    else:
        position = 0 if owner and owner not in ("io", "os", "codecs", "gzip", "zipfile") else 1
        default = "r"
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[position : position + 1]
    if not modes:
        return "b" not in default
    mode = modes[0]
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value


def find_joined_paths(tree: ast.Module) -> Iterator[str]:
    """Paths put together or taken apart with a literal slash."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            for text, other in ((node.left, node.right), (node.right, node.left)):
                if is_slashed(text) and PATHLIKE.search(ast.unparse(other)):
                    yield f"{node.lineno}: {ast.unparse(node)} joins a path with a slash"
        elif isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if (
                    isinstance(value, ast.FormattedValue)
                    and is_slashed(text)
                    and PATHLIKE.search(ast.unparse(value.value))
                ):
                    yield f"{node.lineno}: {ast.unparse(node)} joins a path with a slash"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            splits = node.func.attr in ("split", "rsplit", "partition", "rpartition", "join") and node.args
            owner = ast.unparse(node.func.value)
            if splits and ast.unparse(node.args[0]) == "'/'" and PATHLIKE.search(owner):
                yield f"{node.lineno}: {ast.unparse(node)} takes a path apart at slashes"


def is_slashed(node: ast.expr) -> bool:
    """A text that begins or ends with a slash."""
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text.startswith("/") or text.endswith("/")


def at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when the file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(child)


RULES: dict[str, Callable[[ast.Module], Iterator[str]]] = {
    "posix modules": find_posix_modules,
    "posix names": find_posix_names,
    "renames": find_renames,
    "text without an encoding": find_unencoded_text,
    "paths joined with slashes": find_joined_paths,
}


def python_files() -> list[Path]:
    """Ours, those without a suffix included."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if "__pycache__" in path.parts or not path.is_file():
                continue
            if path.suffix == ".py" or (not path.suffix and path.read_bytes()[:2] == b"#!"):
                found.append(path)
    return found


def test_there_is_something_to_read() -> None:
    names = {path.name for path in python_files()}
    assert {"generate", "test", "check", "bench", "_venv.py", "errors.py"} <= names


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_nothing_of_the_kind(rule: Callable[[ast.Module], Iterator[str]]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files()
        for line in rule(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    ]
    assert found == []


WRONG = [
    (find_posix_modules, "import fcntl"),
    (find_posix_modules, "try:\n    from termios import tcgetattr\nexcept ImportError:\n    pass"),
    (find_posix_modules, "class A:\n    import resource"),
    (find_posix_names, "import signal\nsignal.signal(signal.SIGKILL, None)"),
    (find_posix_names, "import os\nos.fork()"),
    (find_renames, "import os\nos.rename(a, b)"),
    (find_renames, "path.with_suffix('.x').rename(path)"),
    (find_renames, "from os import rename"),
    (find_unencoded_text, "open(name)"),
    (find_unencoded_text, "open(name, 'w')"),
    (find_unencoded_text, "import io\nio.open(name, mode='a')"),
    (find_unencoded_text, "path.open()"),
    (find_unencoded_text, "path.open('w')"),
    (find_unencoded_text, "path.read_text()"),
    (find_unencoded_text, "path.write_text('x')"),
    (find_unencoded_text, "subprocess.run(c, text=True)"),
    (find_unencoded_text, "subprocess.Popen(c, universal_newlines=True)"),
    (find_unencoded_text, "tempfile.NamedTemporaryFile('w')"),
    (find_joined_paths, "path + '/x'"),
    (find_joined_paths, "'models/' + self.folder"),
    (find_joined_paths, "f'{path}/x'"),
    (find_joined_paths, "str(path).split('/')"),
]
RIGHT = [
    (find_posix_modules, "def lock():\n    import fcntl"),
    (find_posix_names, "import signal\nsignal.SIGINT"),
    (find_renames, "import os\nos.replace(a, b)\npath.replace(b)"),
    (find_unencoded_text, "open(name, 'rb')\npath.open('xb')\nopen(name, encoding='utf-8')\nopen(name, mode='wb')"),
    (find_unencoded_text, "path.read_text('utf-8')\npath.write_text('x', encoding='utf-8')\npath.read_bytes()"),
    (find_unencoded_text, "subprocess.run(c, capture_output=True)\nsubprocess.run(c, text=True, encoding='utf-8')"),
    (find_unencoded_text, "os.open(os.devnull, os.O_RDONLY)\ntempfile.TemporaryFile(dir=d)\nPIL.Image.open(name)"),
    (find_joined_paths, "path / 'x'\nkey + '/weight'\nf'{width}/{height}'\nurl.split('/')"),
]


@pytest.mark.parametrize(("rule", "code"), WRONG, ids=[code for _, code in WRONG])
def test_the_rules_see_what_is_wrong(rule: Callable[[ast.Module], Iterator[str]], code: str) -> None:
    assert len(list(rule(ast.parse(code)))) == 1


@pytest.mark.parametrize(("rule", "code"), RIGHT, ids=[code for _, code in RIGHT])
def test_the_rules_leave_the_rest_alone(rule: Callable[[ast.Module], Iterator[str]], code: str) -> None:
    assert list(rule(ast.parse(code))) == []
