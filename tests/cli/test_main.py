"""Exit codes, consoles, and what happens to errors nobody expected."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from avila_diffusion import __version__
from avila_diffusion.cli import main

if TYPE_CHECKING:
    from .conftest import FlatEngine

SOURCE = Path(__file__).resolve().parents[2] / "src"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = dict(os.environ, PYTHONPATH=str(SOURCE), **environment)
    return subprocess.run(
        [sys.executable, "-m", "avila_diffusion", *arguments], capture_output=True, env=env, check=False
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"avila {__version__}\n"
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ["generate", "models", "inspect", "convert", "doctor", "samplers", "schedules"])


def test_the_module_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.decode().strip()) == (0, f"avila {__version__}")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_answer_comes_at_once(option: str) -> None:
    best = 9.0
    for _ in range(5):
        started = time.perf_counter()
        assert run(option).returncode == 0
        best = min(best, time.perf_counter() - started)
    assert best < 1.0  # 0.08 s on an idle machine; importing torch would be seconds


def test_a_bug_is_one_line_and_a_traceback_on_request(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.fail = ZeroDivisionError("division by\nzero")
    assert main(["generate", "cat", "-q"]) == 1
    wanted = "ZeroDivisionError: division by zero (this is a bug; set AVILA_DEBUG=1 for the traceback)"
    assert capsys.readouterr().err == f"avila: error: {wanted}\n"
    monkeypatch.setenv("AVILA_DEBUG", "1")
    engine.fail_run = 1
    assert main(["generate", "cat", "-q"]) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.endswith("avila: error: ZeroDivisionError: division by zero (this is a bug)\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "x.png"), "[Errno 13] Permission denied: 'x.png'"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch is not installed for "),
    ],
)
def test_what_the_machine_lacks_is_not_called_a_bug(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    engine.fail = error
    assert main(["generate", "cat", "-q"]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "bug" not in said


def test_a_narrow_console_shows_an_escape(engine: FlatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    stdout, stderr = (io.TextIOWrapper(buffer, encoding="cp850", write_through=True) for buffer in (out, err))
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["generate", "cat", "-q", "-o", "→.png"]) == 0
    assert out.getvalue().decode("cp850").strip() == "\\u2192.png"
    assert main(["generate", "cat", "--sampler", "→"]) == 2
    assert b"\\u2192" in err.getvalue()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["generate", "--help"], ["samplers"]], ids=["help", "samplers"])
def test_a_reader_that_leaves_is_no_error(arguments: list[str], unbuffered: str) -> None:
    env = dict(os.environ, PYTHONPATH=str(SOURCE), PYTHONUNBUFFERED=unbuffered)
    command = [sys.executable, "-m", "avila_diffusion", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (said, process.wait()) == (b"", 0)


def test_no_stdout_at_all(engine: FlatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw on Windows
    assert main(["generate", "cat", "-q", "-o", "a.png"]) == 0


def test_no_stderr_at_all(
    engine: FlatEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["generate", "cat", "-o", "a.png"]) == 0
    assert capsys.readouterr().out == "a.png\n"
    assert main(["generate", "cat", "--steps", "0"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_sigterm_leaves_nothing_unfinished(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    size = 1 << 30
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with source.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    env = dict(os.environ, PYTHONPATH=str(SOURCE))
    command = [sys.executable, "-m", "avila_diffusion", "convert", str(source), str(tmp_path / "out.safetensors")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env)
    while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
        time.sleep(0.001)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, b"avila: error: stopped; nothing unfinished was left behind\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
