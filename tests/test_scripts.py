"""The bootstrap of scripts/: when it installs, that two at once wait, and what it says where something is missing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("generate", "test", "check", "bench")


@pytest.fixture
def venv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/_venv.py, with pip and `python -m venv` in our hands."""
    spec = importlib.util.spec_from_file_location("avila_scripts_venv", ROOT / "scripts" / "_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["calls"] = calls = []

    def make(base: str, version: str, folder: Path) -> None:
        python = module._python_of(folder.parent)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text("", encoding="utf-8")
        (folder / "pyvenv.cfg").write_text(f"version = {version}\n", encoding="utf-8")
        (folder / module.INTERRUPTED).unlink(missing_ok=True)
        calls.append("venv")

    def usable(root: Path) -> bool:
        return module._python_of(root).exists() and not (root / ".venv" / module.INTERRUPTED).exists()

    monkeypatch.setattr(module, "_make_venv", make)
    monkeypatch.setattr(module, "_is_usable", usable)
    monkeypatch.setattr(module, "_pip", lambda root, arguments: calls.append(" ".join(arguments[2:])))
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of nothing but its pins."""
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n", encoding="utf-8")
    return tmp_path


BUILD = "hatchling editables"
CORE = ["venv", BUILD, "--no-build-isolation -e ."]
DEV = [BUILD, "--no-build-isolation -e .[dev]", "--no-deps k-diffusion"]


def test_it_installs_once(venv: ModuleType, root: Path) -> None:
    assert venv.prepare("core", root) == venv._python_of(root)
    assert venv.calls == CORE
    venv.prepare("core", root)
    assert venv.calls == CORE
    venv.prepare("dev", root)
    assert venv.calls == CORE + DEV
    venv.prepare("core", root)
    venv.prepare("dev", root)
    assert venv.calls == CORE + DEV


def test_dev_holds_core(venv: ModuleType, root: Path) -> None:
    venv.prepare("dev", root)
    venv.prepare("core", root)
    assert venv.calls == ["venv", *DEV]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", ".venv/pyvenv.cfg"])
def test_it_installs_again_when_the_pins_change(venv: ModuleType, root: Path, name: str) -> None:
    venv.prepare("core", root)
    with (root / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    venv.calls.clear()
    venv.prepare("core", root)
    assert venv.calls == CORE[1:]


def test_it_installs_again_when_the_folder_has_moved(venv: ModuleType, root: Path) -> None:
    venv.prepare("core", root)
    moved = root.with_name(root.name + "-moved")
    root.replace(moved)
    venv.calls.clear()
    venv.prepare("core", moved)
    assert venv.calls == CORE[1:]


def test_an_install_that_was_killed_is_begun_anew(
    venv: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(root: Path, arguments: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(venv, "_pip", die)
        with pytest.raises(KeyboardInterrupt):
            venv.prepare("core", root)
    venv.calls.clear()
    venv.prepare("core", root)
    assert venv.calls == CORE


def test_an_install_that_failed_is_tried_again_on_what_is_there(
    venv: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(root: Path, arguments: list[str]) -> None:
        raise venv.Trouble("no index")

    with monkeypatch.context() as patch:
        patch.setattr(venv, "_pip", fail)
        with pytest.raises(venv.Trouble):
            venv.prepare("core", root)
    venv.calls.clear()
    venv.prepare("core", root)
    assert venv.calls == CORE[1:]


def test_two_at_once_install_once(
    venv: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside: list[int] = []

    def slow(root: Path, arguments: list[str]) -> None:
        inside.append(1)
        assert len(inside) == 1, "two at once"
        time.sleep(0.2)
        inside.pop()
        venv.calls.append("pip")

    monkeypatch.setattr(venv, "_pip", slow)
    threads = [threading.Thread(target=venv.prepare, args=("core", root)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert venv.calls == ["venv", "pip", "pip"]
    assert "another install is under way" in capsys.readouterr().err


def test_the_lock_goes_with_its_process(venv: ModuleType, root: Path) -> None:
    hold = f"import sys, time; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import _venv; from pathlib import Path\n"
    hold += f"with _venv._lock(Path({str(root)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"held"
    with (root / ".venv.lock").open("a+b") as file:
        assert not venv._take(file.fileno())
        process.kill()
        process.wait()
        process.stdout.close()
        assert venv._take(file.fileno())


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            ["WARNING: Retrying after NewConnectionError", "ERROR: No matching distribution found for x"],
            "no package index",
        ),
        (["ERROR: No matching distribution found for torch==2.13.0"], "has no torch==2.13.0 for this Python"),
        (["ERROR: Could not install packages: [Errno 28] No space left on device"], "the disk is full"),
        (
            ["  error: metadata-generation-failed", "hint: See above for details."],
            "pip failed: metadata-generation-failed",
        ),
        (["killed"], "pip failed: killed"),
        ([], "pip failed: it said nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(venv: ModuleType, output: list[str], words: str) -> None:
    said = venv.explain_pip(output)
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("The virtual environment was not created\nbecause ensurepip is not available.", "apt install python3.12-venv"),
        ("/usr/bin/python3: No module named venv", "apt install python3.12-venv"),
        ("Error: [Errno 13] Permission denied: '.venv'\n", "Permission denied: '.venv'"),
    ],
)
def test_what_venv_says_becomes_one_line(venv: ModuleType, output: str, words: str) -> None:
    said = venv.explain_venv(output, "3.12.3")
    assert words in said
    assert "\n" not in said


def test_an_old_python_looks_for_a_newer_one_and_says_so(venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venv, "MINIMUM", (99, 0))
    monkeypatch.setattr(venv.shutil, "which", lambda name: None)
    with pytest.raises(venv.Trouble, match=r"Python 3\.11 or newer is needed, and this is 3\."):
        venv._find_python()


def test_trouble_is_one_line_and_exit_code_1(
    venv: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(level: str) -> None:
        raise venv.Trouble("no\n  index")

    monkeypatch.setattr(venv, "prepare", fail)
    with pytest.raises(SystemExit) as stop:
        venv.run("core", ["-c", "pass"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "avila: error: no index\n"


def test_all_checks_run_and_one_that_fails_counts(
    venv: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(venv, "prepare", lambda level: sys.executable)
    commands = [["-c", "print('one')"], ["-c", "raise SystemExit(3)"], ["-c", "print('three')"]]
    assert venv.run_each("dev", commands, cwd=ROOT) == 1
    said = capfd.readouterr().out
    assert "one\n" in said
    assert "three\n" in said
    assert venv.run_each("dev", commands[:1], cwd=ROOT) == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_by_name_and_by_python(name: str) -> None:
    path = ROOT / "scripts" / name
    text = path.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env python3\n")
    assert os.name == "nt" or os.access(path, os.X_OK)
    assert b"\r" not in path.read_bytes()
    compile(text, str(path), "exec")


def test_every_direct_dependency_is_pinned() -> None:
    import re
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    lines = project["project"]["dependencies"] + extras["dev"] + extras["compiler"] + extras["server"]
    wanted = {re.split(r"[<>=! ]", line)[0].lower() for line in [*lines, *project["build-system"]["requires"]]}
    wanted.discard("avila-diffusion[server]")  # dev holds that extra
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(pin.split("==") for pin in pins if pin and not pin.startswith("#"))
    assert sorted((wanted | {"k-diffusion", "editables"}) - set(pinned)) == []
    assert pinned["torch"] == "2.13.0"
    assert list(pinned) == sorted(pinned)
