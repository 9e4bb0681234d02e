"""`avila models`, `avila inspect`, `avila convert`: what is passed on and how it is shown."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.checkpoint.folders import ModelFile
from avila_diffusion.cli import main
from avila_diffusion.errors import NotADiffusionModel


@dataclass(frozen=True)
class Found:
    """A row of `list_models`."""

    name: str
    path: Path
    role: str
    size: int
    needs_conversion: bool


class Told:
    """A report of two lines."""

    def lines(self) -> list[str]:
        return ["one", "two"]

    def to_dict(self) -> dict[str, Any]:
        return {"one": 1}


@pytest.fixture
def calls(no_bundled: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that reach the rooms behind the commands."""
    made: list[Any] = []

    def list_models(role: str, models: str | None, *, notes: list[str]) -> list[Found]:
        made.append((role, models))
        notes.append("b.safetensors was skipped")
        found = [Found("a", Path("m/a.safetensors"), role, 2_130_000_000, needs_conversion=False)]
        found += [Found("old", Path("m/old.ckpt"), role, 4_270_000_000, needs_conversion=True)]
        return found if models else []

    def inspect(path: Path) -> Told:
        made.append(path)
        if path.name == "odd":
            raise NotADiffusionModel("odd is a LoRA")
        return Told()

    def convert(source: Path, target: Path, **options: Any) -> Told:
        made.append((source, target, options))
        return Told()

    rooms: dict[str, dict[str, Any]] = {
        "folders": {"list_models": list_models, "ModelFile": ModelFile},
        "inspection": {"inspect": inspect},
        "convert": {"convert": convert},
    }
    for room, members in rooms.items():
        module = types.ModuleType(room)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, f"avila_diffusion.checkpoint.{room}", module)
    return made


def test_models_are_listed(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--models-dir", "m"]) == 0
    said = capsys.readouterr()
    first_note, second_note = said.err.splitlines()
    assert first_note == "avila: b.safetensors was skipped"
    assert second_note.startswith("avila: the bundled model is not in this copy")
    first, second = said.out.splitlines()
    assert first == f"a      2.13 GB  {Path('m/a.safetensors')}"
    assert second.startswith(f"old    4.27 GB  {Path('m/old.ckpt')}  (pickled: avila convert")
    assert main(["models", "--models-dir", "m", "--json"]) == 0
    first_row, _ = json.loads(capsys.readouterr().out)
    row = {"name": "a", "path": str(Path("m/a.safetensors")), "role": "checkpoint", "size": 2_130_000_000}
    assert first_row == row
    assert calls == [("checkpoint", "m")] * 2


def test_no_models_is_said_with_what_to_do(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "AVILA_MODELS" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_inspect(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "x"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert main(["inspect", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"one": 1}
    assert main(["inspect", "odd"]) == 1
    assert capsys.readouterr() == ("", "avila: error: odd is a LoRA\n")
    assert calls == [Path("x"), Path("x"), Path("odd")]


def test_convert(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "a.ckpt", "b.safetensors"]) == 0
    assert main(["convert", "a.ckpt", "b.safetensors", "--dtype", "bf16", "--overwrite", "--json"]) == 0
    assert capsys.readouterr().out == 'one\ntwo\n{\n  "one": 1\n}\n'
    files = (Path("a.ckpt"), Path("b.safetensors"))
    assert calls == [(*files, {"dtype": None, "overwrite": False}), (*files, {"dtype": "bf16", "overwrite": True})]
    assert main(["convert", "a.ckpt", "b.safetensors", "--dtype", "f8"]) == 2
    assert main(["convert", "a.ckpt"]) == 2


def test_a_picture_drawn_without_a_model_is_drawn_again_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a sunset", "--procedural", "-W", "64", "-H", "64", "-s", "1", "-o", "p.png", "-q"]) == 0
    for command in (["generate", "--from", "p.png", "-o", "q.png"], ["replay", "p.png", "--verify"]):
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "p.png was drawn without a model; `avila generate --from p.png --procedural`" in said
    assert main(["generate", "--from", "p.png", "--procedural", "-o", "q.png"]) == 0
    assert "not used" not in capsys.readouterr().err
    assert (tmp_path / "q.png").read_bytes() == (tmp_path / "p.png").read_bytes()
