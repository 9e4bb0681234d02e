"""What the documents say is true: code that runs, links that lead somewhere, commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from avila_diffusion.checkpoint import bundled
from avila_diffusion.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.pt.md")
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(read(name)) if language in languages]


def run_python(arguments: list[str], folder: Path) -> str:
    env = dict(os.environ, PYTHONPATH=str(ROOT / "src"), PYTHONIOENCODING="utf-8")
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(name: str) -> list[list[str]]:
    """The command lines of a document, as the arguments of `avila`."""
    found = []
    lines = [line for code in blocks(name, "sh", "bat") for line in code.splitlines()]
    lines += re.findall(r"`((?:avila|scripts/generate) [^`]+)`", read(name))
    for line in lines:
        words = [word.strip('"') for word in shlex.split(line, comments=True, posix=False)]
        for start, command in ((["avila"], []), (["scripts/generate"], ["generate"])):
            if words[:1] == start:
                found.append([*command, *words[1:]])
        if words[:2] == ["python", "scripts\\generate"]:
            found.append(["generate", *words[2:]])
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_blocks_are_python(name: str) -> None:
    for code in blocks(name, "python"):
        compile(code, name, "exec")


@pytest.mark.parametrize("name", READMES)
def test_the_line_without_a_model_runs(name: str, tmp_path: Path) -> None:
    (line,) = re.findall(r"^AvilaDiffusion\(\)\.text_to_image\(.*$", read(name), re.MULTILINE)
    run_python(["-c", f"from avila_diffusion import AvilaDiffusion\n{line}"], tmp_path)
    assert (tmp_path / "output.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(read(name)) if "://" not in link]
    assert [link for link in links if link and not (ROOT / name).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name: str) -> None:
    for words in commands(name):
        if words not in (["--help"], ["--version"]):  # which the parser answers at once, and ends
            build_parser().parse_args(words)


def test_the_readme_shows_commands() -> None:
    assert len(commands("README.md")) >= 10


def test_unknown_commands_would_be_seen() -> None:
    from avila_diffusion.errors import RequestError

    for words in (["nonsense"], ["generate", "x", "--nonsense"]):
        with pytest.raises(RequestError):
            build_parser().parse_args(words)


def test_both_readmes_say_the_same() -> None:
    english, portuguese = map(read, READMES)
    assert BLOCK.findall(english) == BLOCK.findall(portuguese)
    other = {"README.md", "README.pt.md"}
    assert set(LINK.findall(english)) ^ set(LINK.findall(portuguese)) == other
    assert [line.count("#") for line in english.splitlines() if line.startswith("#")] == [
        line.count("#") for line in portuguese.splitlines() if line.startswith("#")
    ]
    assert english.count("\n- ") == portuguese.count("\n- ")


@pytest.mark.parametrize("name", READMES)
def test_the_names_in_the_readme_are_those_of_the_tables(name: str) -> None:
    from avila_diffusion.sampling.names import SAMPLERS, SCHEDULES

    text = " ".join(read(name).split())
    for title, table in (("Samplers", SAMPLERS), ("Schedules", SCHEDULES)):
        match = re.search(rf"\*\*{title}\*\*: ([^.]*)\.", text)
        assert match is not None
        assert match[1].split(", ") == [info.name for info in table.values()]


def test_the_limits_in_the_readme_are_those_of_the_request() -> None:
    from avila_diffusion import limits

    text = read("README.md")
    assert f"{limits.MAX_SIDE} pixels a side" in text
    assert f"{int(limits.MAX_PIXELS / 1e5) / 10} megapixels" in text
    assert f"{limits.MAX_STEPS:,} steps" in text
    assert f"{limits.MAX_BATCH} pictures a batch" in text


def test_the_procedural_example_draws(tmp_path: Path) -> None:
    said = run_python([str(ROOT / "examples" / "procedural.py"), "a forest", "a.png"], tmp_path)
    assert said.startswith("a.png: seed ")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_bundled_example_draws_or_says_what_is_missing(tmp_path: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(ROOT / "src"), PYTHONIOENCODING="utf-8")
    command = [sys.executable, str(ROOT / "examples" / "bundled.py"), "a red apple", "a.png"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False)
    if bundled.resource().is_file():
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("a.png: drawn at (128, 128), seed 1, ")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert done.returncode == 1
        assert done.stderr.startswith("the bundled model is not in this copy of avila_diffusion")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not bundled.resource().is_file(), reason="this source folder has no bundled model")
@pytest.mark.parametrize("name", READMES)
def test_the_line_with_the_bundled_model_runs(name: str, tmp_path: Path) -> None:
    (line,) = re.findall(r"^AvilaDiffusion\.bundled\(\)\.text_to_image\(.*$", read(name), re.MULTILINE)
    run_python(["-c", f"from avila_diffusion import AvilaDiffusion\n{line}"], tmp_path)
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")


def test_the_progress_example_reports_and_cancels(tmp_path: Path) -> None:
    program = str(ROOT / "examples" / "progress_and_cancel.py")
    said = run_python([program], tmp_path).splitlines()
    assert said[-1] == "done: progress.png"
    assert len(said) > 1
    (tmp_path / "progress.png").unlink()
    assert run_python([program, "--stop-after", "1"], tmp_path).splitlines()[-1] == "cancelled; nothing was written"
    assert not (tmp_path / "progress.png").exists()


def test_the_checkpoint_example_says_what_is_wrong(tmp_path: Path) -> None:
    env = dict(os.environ, PYTHONPATH=str(ROOT / "src"))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for arguments, words in (([], "MODEL"), (["empty.safetensors"], "empty.safetensors")):
        command = [sys.executable, str(ROOT / "examples" / "from_checkpoint.py"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("examples/*.py")}
    assert len(lengths) >= 3
    assert max(lengths.values()) < 40
