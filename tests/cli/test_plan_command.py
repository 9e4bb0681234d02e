"""`avila plan`, with tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avila_diffusion.cli import main
from avila_diffusion.kernels import calibration


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates measured in no time, and kept nowhere else; an empty current folder."""
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "SECONDS_A_KIND", 0.0)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "TOUCHED", 1 << 20)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_both_ways_are_told_and_nothing_is_made(tiny_checkpoint: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "a hill", "-m", str(tiny_checkpoint("sd1")), "--steps", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1 picture, 3 model calls\nfast: peak ")
    assert "\nlean: peak " in said and " s a step, " in said and " s a decode, " in said
    assert not list(Path().iterdir())


def test_json(tiny_checkpoint: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_checkpoint("sd1"))
    assert main(["plan", "-p", "a hill", "-m", path, "--steps", "2", "-b", "2", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == path and told["start_seconds"] > 0
    assert told["fast"]["calls"] == told["lean"]["calls"] == 4
    assert told["fast"]["kept_bytes"] > told["lean"]["kept_bytes"]
    assert {"peak_bytes", "seconds", "step_seconds", "decode_seconds"} <= told["lean"].keys()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan"], 2, "a prompt is needed"),
        (["plan", "a hill", "-m", "nowhere.safetensors"], 2, "nowhere.safetensors"),
        (["plan", "a hill", "-m", "./damaged.safetensors"], 1, "damaged.safetensors"),
        (["plan", "a hill", "--procedural"], 2, "nothing to plan"),
        (["plan", "a hill", "--steps", "0"], 2, "steps"),
    ],
)
def test_errors_are_one_line(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("damaged.safetensors").write_bytes(b"\x08" + bytes(99))
    assert main(words) == code
    error = capsys.readouterr().err
    assert said in error and error.startswith("avila: error: ") and error.count("\n") == 1
