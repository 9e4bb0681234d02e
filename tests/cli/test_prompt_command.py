"""`avila prompt`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.cli import main


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "a (red:1.2) car", "-n", "blur", "--steps", "4", "--sampler", "heun"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 steps of Heun, counted as 8 model calls\nprompt: 'a (red:1.2) car'\n")
    assert "red=736x1.2" in said
    assert "negative prompt: 'blur'" in said


def test_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "a [b:c:0.5] <lora:x:1>", "--steps", "4", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["prompts"]
    assert report["networks"] == ["<lora:x:1>: text encoders 1, UNet 1"]
    assert [segment["calls"] for segment in report["parts"][0]["segments"]] == [[0, 2], [3, 3]]
    assert report["parts"][0]["segments"][1]["pieces"] == [{"text": "a c", "weight": 1.0}]


def test_with_a_model(capsys: pytest.CaptureFixture[str], tiny_checkpoint: Callable[[str], Path]) -> None:
    assert main(["prompt", "a", "-m", str(tiny_checkpoint("sdxl")), "--json"]) == 0
    encoders = json.loads(capsys.readouterr().out)["text_encoders"]
    assert [(encoder["kind"], encoder["pad"]) for encoder in encoders] == [("clip", 49407), ("open_clip", 0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompt"], "PROMPT"),
        (["prompt", "a", "--steps", "0"], "steps is 0"),
        (["prompt", "a", "--sampler", "nothing"], "nothing"),
        (["prompt", "a" * 100_001], "100,001 characters"),
        (["prompt", "a", "-m", "nowhere.safetensors"], "nowhere"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_embeddings_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    write_safetensors(tmp_path / "easynegative.safetensors", {"emb_params": torch.ones(3, 48)})
    (tmp_path / "other.safetensors").write_bytes(b"is read only where it is named")
    assert main(["prompt", "a EasyNegative", "--embeddings-dir", str(tmp_path)]) == 0
    assert "embedding easynegative, 3 vectors" in capsys.readouterr().out
    model = str(tiny_checkpoint("sdxl"))
    assert main(["prompt", "a EasyNegative", "--embeddings-dir", str(tmp_path), "-m", model]) == 0
    assert "easynegative is refused" in capsys.readouterr().out


def test_in_other_dialects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "((a:1.3):2) AND [b]", "--compat", "comfyui"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("20 steps of DPM++ 2M, counted as 20 model calls, as ComfyUI reads prompts\n")
    assert "weight 1.3    'a'" in said
    assert "note: ComfyUI knows no AND; it was read as words" in said
    assert main(["prompt", "(a:1.3)", "--compat", "diffusers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compat"] == "diffusers"
    assert found["prompts"][0]["parts"][0]["segments"][0]["pieces"] == [{"text": "(a:1.3)", "weight": 1.0}]
    assert main(["prompt", "(a:1.3)", "--emphasis", "Ignore"]) == 0
    said = capsys.readouterr().out
    assert "emphasis Ignore" in said
    assert "weight 1      'a'" in said
    assert main(["prompt", "(a:1.3)", "--emphasis", "Ignore", "--compat", "comfyui"]) == 2
    assert "emphasis means something with compat a1111 only" in capsys.readouterr().err
