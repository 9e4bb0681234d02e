"""`avila info`, `avila generate --from` and the formats of `-o`, on pictures of our own and of other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngInfo

from avila_diffusion import kernels
from avila_diffusion.cli import main
from avila_diffusion.images import Image, read_image
from avila_diffusion.metadata import read_request

METADATA = Path(__file__).resolve().parent.parent / "metadata"
LINE = ("generate", "a cat ", "-s", "7", "-W", "64", "-H", "64", "--sampler", "Euler a", "--steps", "2", "-t", "1")


@pytest.fixture
def comfyui(tmp_path: Path) -> str:
    """A picture of ComfyUI."""
    texts = PngInfo()
    for name, value in json.loads((METADATA / "comfyui.json").read_text(encoding="utf-8")).items():
        texts.add_text(name, json.dumps(value))
    PillowImage.new("RGB", (8, 8)).save(tmp_path / "comfyui.png", pnginfo=texts)
    return str(tmp_path / "comfyui.png")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, which is the models folder too; what a replay takes over is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path))
    threads, enabled = torch.get_num_threads(), kernels.ENABLED
    yield
    torch.set_num_threads(threads)
    kernels.ENABLED = enabled


def test_info_tells_program_files_request_and_losses(capsys: pytest.CaptureFixture[str], comfyui: str) -> None:
    assert main(["info", comfyui]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"{comfyui}: made by ComfyUI\nmodel: v1-5-pruned-emaonly\nLoRA: <lora:epiNoiseoffset_v2:1>\n"
    )
    assert "  negative_prompt  bad hands\n" in said
    assert "not carried over" not in said
    assert main(["info", str(METADATA / "invokeai.png")]) == 0
    said = capsys.readouterr().out
    assert "\nnot carried over:\n  ipAdapters: [{" in said
    assert main(["info", str(METADATA / "a1111.jpg"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["infotext"].startswith("photo of a duck\n")
    assert (told["source"], told["model_hash"], told["request_values"]["steps"]) == ("AUTOMATIC1111", "c0d1994c73", 15)


def test_info_says_what_is_no_picture_or_has_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bare = Image(numpy.zeros((8, 8, 3), numpy.uint8)).save(tmp_path / "bare.png")
    (tmp_path / "empty.png").touch()
    for path, message in (
        (bare, "carries no metadata"),
        (tmp_path / "empty.png", "is not a PNG"),
        (tmp_path / "x", "cannot be"),
    ):
        assert main(["info", str(path)]) == 1
        said = capsys.readouterr().err
        assert message in said and said.count(path.name) == 1 and said.count("\n") == 1


def test_info_moves_no_cursor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = Image(numpy.zeros((8, 8, 3), numpy.uint8), "a\x1b[2Jb\x07\nSteps: 1, Seed: 2, aa: \x1b]0;x").save(
        tmp_path / "a.png"
    )
    assert main(["info", str(path)]) == 0
    assert not set(capsys.readouterr().out) & set("\x1b\x07")


def test_generate_from_a_picture_of_another_program(engine: Any, comfyui: str) -> None:
    assert main(["generate", "--from", comfyui, "-m", "mine", "--steps", "3", "-o", "a.png", "-q"]) == 0
    (request,) = engine.requests
    assert (request.prompt, request.negative_prompt, request.steps) == ("masterpiece best quality girl", "bad hands", 3)
    assert (request.compat, request.seed, request.schedule) == ("comfyui", 851616030078638, "normal")
    assert engine.options["lora"] == [(Path("found/lora/found/lora/epiNoiseoffset_v2"), 1.0, 1.0)]
    assert (
        main(["generate", "a dog", "--from", comfyui, "-m", "mine", "--lora", "other:0.5", "-s", "1", "-o", "a.png"])
        == 0
    )
    assert (engine.requests[1].prompt, engine.requests[1].seed) == ("a dog", 1)
    assert engine.options["lora"] == [(Path("found/lora/other"), 0.5, 0.5)]


def test_what_is_lost_is_told(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["generate", "--from", str(METADATA / "invokeai.png"), "-m", "mine", "--steps", "1", "-o", "a.png"]) == 0
    )
    assert "not carried over: ipAdapters" in capsys.readouterr().err
    assert engine.requests[0].width == 1024


def test_a_picture_is_made_from_a_picture(alone: None, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint("sd1"), tmp_path / "tiny.safetensors")
    assert main([*LINE, "-m", "tiny", "-b", "2", "-o", "a.png", "-q"]) == 0
    assert main(["generate", "--from", "a-2.png", "-o", "again.png", "-q"]) == 0  # the model by its name and hash
    assert Path("again.png").read_bytes() == Path("a-2.png").read_bytes()
    found = read_request(read_image("a-2.png"))
    assert found.exact
    assert found.request_values["prompt"] == "a cat "
    assert found.conditions["dtypes"] == ["float32"] * 3
    assert "processor" not in found.conditions
    assert main(["generate", "--from", "a-2.png", "--cfg", "2", "-o", "other.png", "-q"]) == 0
    assert (read_image("other.png").pixels != read_image("a-2.png").pixels).any()


@pytest.mark.parametrize(
    "options",
    [
        "--sampler Euler --s-churn 2 --s-tmin 0.1 --s-tmax 10 --s-noise 1.01 --guidance-rescale 0.7 --clip-skip 2",
        "--schedule Karras --rho 5 --sigma-min 0.1 --sigma-max 10 --guidance-start 0.2 --guidance-stop 0.8 --rng cpu",
        "--variation-strength 0.3 --seed-resize 128x64 --ensd 31337 --eta 0.4 --skip-early 0.4 -n (dog:1.2) --emphasis Ignore",
        "--compat comfyui --noise-batch 4 --noise-index 2 --ngms 4 --ngms-all --cfg-list 9,7",
        "--sampler DDIM --eta 0.4 --compat diffusers",
        "--sampler Heun --sigmas 14.6,3.5,0.8,0",
        "--sampler PLMS --schedule Beta --cfg 1",
    ],
)
def test_every_setting_is_made_again(
    alone: None, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, options: str
) -> None:
    shutil.copy(tiny_checkpoint("sd1"), tmp_path / "tiny.safetensors")
    line = ["generate", "a (cat:1.2)", "-s", "7", "-W", "64", "-H", "64", "-t", "1", "-m", "tiny", "-q"]
    steps = [] if "--sigmas" in options else ["--steps", "3"]
    sampler = [] if "--sampler" in options else ["--sampler", "Euler a"]
    assert main([*line, *steps, *sampler, *options.split(), "-o", "a.png"]) == 0
    assert main(["generate", "--from", "a.png", "-o", "b.png", "-q"]) == 0
    assert Path("b.png").read_bytes() == Path("a.png").read_bytes()
    assert main(["replay", "a.png", "--verify", "-q"]) == 0


@pytest.mark.parametrize("name", ["b.jpg", "b.webp", "b.avif"])
def test_the_output_is_of_the_kind_that_its_name_says(
    alone: None, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shutil.copy(tiny_checkpoint("sd1"), tmp_path / "tiny.safetensors")
    assert main([*LINE, "-m", "tiny", "-o", "a.png", "-q"]) == 0
    assert main([*LINE, "-m", "tiny", "-o", name, "-q"]) == 0
    head = Path(name).read_bytes()[:12]
    assert {"b.jpg": head[:2] == b"\xff\xd8", "b.webp": head[8:] == b"WEBP", "b.avif": head[4:] == b"ftypavif"}[name]
    assert read_image(name).infotext == read_image("a.png").infotext
    assert main(["replay", name, "-o", "c.png", "-q"]) == 0
    assert Path("c.png").read_bytes() == Path("a.png").read_bytes()
