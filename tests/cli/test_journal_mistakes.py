"""Journals, trails and metadata that are given wrongly: refused in one line, before a picture is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from avila_diffusion import kernels
from avila_diffusion.cli import main
from avila_diffusion.images import read_image

LINE = ("generate", "a cat", "-s", "7", "-W", "64", "-H", "64", "--steps", "2", "-t", "1")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder that is the models folder too, a cache of its own; what a run takes over is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path))
    threads, enabled = torch.get_num_threads(), kernels.ENABLED
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    kernels.ENABLED = enabled


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_checkpoint("sd1"), tmp_path / "tiny.safetensors"))


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("avila: error: ")
    assert "this is a bug" not in said
    return said


def test_no_picture_replaces_its_journal(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    line = (*LINE, "-m", model)
    assert "is the journal, and a picture" in refused(capsys, *line, "--journal", "z.png", "-o", "z.png")
    assert "is the journal, and a picture" in refused(capsys, *line, "--journal", "link/z.png", "-o", "z.png")
    assert "a picture" in refused(capsys, *line, "--journal", "./z-2.png", "-o", "z.png", "-b", "2")
    assert "a trail would" in refused(capsys, *line, "--journal", "q.trail", "-o", "q.png", "--trail")
    assert "a trail would" in refused(capsys, *line, "--journal", "outputs/00001-7.trail", "--trail")
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob("*.trail"))
    run(*line, "--journal", "j.png", "-o", "a.png")
    before = Path("j.png").read_bytes()
    assert "is the journal" in refused(capsys, "resume", "j.png", "-o", "j.png")
    assert "is the journal" in refused(capsys, "resume", "j.png", "--branch-at", "1", "-o", "j.png")
    branch = ("resume", "j.png", "--branch-at", "1", "-p", "a dog")
    assert "is the journal" in refused(capsys, *branch, "-o", "k.png", "--journal", "k.png")
    assert Path("j.png").read_bytes() == before and not Path("k.png").exists()


def test_a_place_where_no_trail_can_be(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.trail").mkdir()
    said = refused(capsys, *LINE, "-m", model, "--trail", "-o", "a.png")
    assert "a.trail cannot be replaced; it is a folder" in said
    assert not Path("a.png").exists()


def test_a_scale_for_a_branch_wins_over_a_list_of_them(model: Path) -> None:
    run(*LINE, "-m", model, "--cfg-list", "7,3", "--journal", "j", "-o", "a.png")
    run("resume", "j", "--branch-at", "1", "--cfg", "1.5", "-o", "b.png")
    run("resume", "j", "--branch-at", "1", "-o", "c.png")
    one, other, same = (read_image(f"{name}.png") for name in "abc")
    assert (one.pixels != other.pixels).any() and (one.pixels == same.pixels).all()
    assert "CFG scale: 1.5" in str(other.infotext) and "CFG list" not in str(other.infotext)


@pytest.mark.parametrize(
    "wrong", [{"sigma": "x"}, {"sigma": None}, {"step": "x"}, {"step": True}, {"asked": 1}, {"values": 3}, {"more": 1}]
)
def test_a_trail_with_wrong_types(wrong: dict[str, Any], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*LINE, "-m", model, "--trail", "-o", "a.png")
    trail = json.loads(Path("a.trail").read_text(encoding="utf-8"))
    trail["calls"][1] |= wrong
    Path("a.trail").write_text(json.dumps(trail), encoding="utf-8")
    assert "the trail a.trail cannot be read" in refused(capsys, "replay", "a.png", "--verify")
