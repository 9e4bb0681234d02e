"""A prompt with all of the language at once: rendered, explained, read back and made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sd_parsers
import torch

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.cli import main
from avila_diffusion.images import read_image
from avila_diffusion.metadata import read_request
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.text.tokenizer import clip_tokenizer

PROMPT = (
    "a (red:1.3) cat in the [morning:evening:0.5], easynegative, [oil|ink] painting, "
    + "a house by the sea, with (boats) and [clouds], " * 12
    + "BREAK a wide hill, "
    + "trees, and stones, and a river that runs to the left of it, " * 12
    + "<lora:ink:0.8:0.5> AND a (blue:0.7) dog :0.6 <lora:red:0.6>"
)


@pytest.fixture
def model(tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint among models, with an embedding and two LoRAs where they are found by name."""
    folder = tmp_path / "models"
    for name in ("checkpoints", "Lora", "embeddings"):
        (folder / name).mkdir(parents=True)
    path = tiny_checkpoint("sd1").rename(folder / "checkpoints" / "tiny.safetensors")
    inner = AvilaDiffusion.with_model(path)._engine
    assert isinstance(inner, ModelEngine)
    width = inner.model.spec.text[0].config.width
    generator = torch.Generator().manual_seed(5)
    vectors = torch.randn(4, width, generator=generator) * 0.1
    write_safetensors(folder / "embeddings" / "easynegative.safetensors", {"emb_params": vectors})
    for name in ("ink", "red"):
        state, seen = {}, set()
        for target_name, target in name_targets(inner.model).items():
            if len(target.shape) == 2 and id(target.layer) not in seen:  # a layer may have several names
                seen.add(id(target.layer))
                down = torch.randn(2, target.shape[1], generator=generator)
                state[f"{target_name}.lora_down.weight"] = down * 0.2
                state[f"{target_name}.lora_up.weight"] = torch.randn(target.shape[0], 2, generator=generator) * 0.2
        write_safetensors(folder / "Lora" / f"{name}.safetensors", state, {"ss_base_model_version": "sd_v1"})
    monkeypatch.setenv("AVILA_MODELS", str(folder))
    monkeypatch.chdir(tmp_path)
    return path


def test_a_long_prompt_with_everything(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 370 <= len(clip_tokenizer().encode(PROMPT)) <= 520
    line = ["generate", PROMPT, "-n", "(blur:1.2), easynegative", "-m", "tiny", "--steps", "4", "-s", "7"]
    assert main([*line, "-W", "64", "-H", "64", "-q", "--trail", "-o", "a.png"]) == 0
    capsys.readouterr()

    assert main(["prompt", PROMPT, "-m", "tiny", "--steps", "4"]) == 0
    said = capsys.readouterr().out
    assert "embedding easynegative, 4 vectors" in said
    assert "<lora:ink:0.8:0.5>: text encoders 0.8, UNet 0.5" in said and "<lora:red:0.6>" in said
    assert "part 2 of 2, weight 0.6" in said and "closed by BREAK" in said
    assert "refused" not in said

    found = read_request(read_image("a.png"))
    request = found.request()
    assert (request.prompt, request.negative_prompt) == (PROMPT, "(blur:1.2), easynegative")
    assert (found.lost, found.loras, request.seed, request.steps) == ((), (), 7, 4)
    assert list(found.embeddings) == ["easynegative"]
    told = sd_parsers.ParserManager().parse("a.png")
    assert told is not None
    assert {prompt.value for prompt in told.prompts} == {PROMPT}
    assert {prompt.value for prompt in told.negative_prompts} == {request.negative_prompt}
    (sampler,) = told.samplers
    assert (sampler.name, sampler.parameters["steps"]) == (request.sampler, "4")

    assert main(["replay", "a.png", "--verify", "-q"]) == 0
    assert "a.png: identical in all" in capsys.readouterr().out
    Path("a.trail").unlink()
    assert main(["replay", "a.png", "--verify", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "identical in every pixel"
