"""`--preview-dir` and `--preview-decoder`: what lies in the folder, of a flat engine and of a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
import torch

from avila_diffusion.cli import main
from avila_diffusion.errors import NotFinite
from avila_diffusion.images import Image
from avila_diffusion.kernels import calibration
from avila_diffusion.result import Progress

if TYPE_CHECKING:
    from .conftest import FlatEngine


@pytest.fixture
def seeing(engine: FlatEngine, monkeypatch: pytest.MonkeyPatch) -> FlatEngine:
    """The flat engine with previews, two pixels wide, whose grey is the step."""
    generate = engine.generate

    def with_previews(*asked: Any, **named: Any) -> Iterator[Any]:
        for event in generate(*asked, **named):
            if isinstance(event, Progress) and event.stage == "sample":
                event = replace(event, preview=partial(Image, np.full((1, 2, 3), event.step, np.uint8)))
            yield event

    monkeypatch.setattr(engine, "generate", with_previews)
    return engine


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_after_every_step(seeing: FlatEngine, tmp_path: Path) -> None:
    asked = ["generate", "a cat", "--steps", "3", "-b", "2", "--count", "2", "-o", "made/cat.png"]
    assert main([*asked, "--preview-dir", "seen/here"]) == 0
    folder = tmp_path / "seen" / "here"
    assert names(folder) == [f"cat-{picture}-00{step}.png" for picture in (1, 2, 3, 4) for step in (1, 2, 3)]
    with PIL.Image.open(folder / "cat-3-002.png") as made:
        assert made.size == (2, 1) and made.getpixel((0, 0)) == (2, 2, 2)


def test_after_every_few_steps(seeing: FlatEngine, tmp_path: Path) -> None:
    assert main(["generate", "a cat", "--steps", "8", "--preview-dir", "seen", "--preview-every", "3"]) == 0
    assert names(tmp_path / "seen") == ["preview-1-003.png", "preview-1-006.png"]
    assert main(["generate", "a cat", "--steps", "8", "--preview-dir", "seen", "--preview-every", "8"]) == 0
    assert "preview-1-008.png" in names(tmp_path / "seen")


def test_what_cannot_be_drawn_does_not_stop_the_picture(
    engine: FlatEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    generate = engine.generate
    tried: list[None] = []

    def broken() -> Image:
        tried.append(None)
        raise NotFinite("the VAE returned NaN")

    def with_previews(*asked: Any, **named: Any) -> Iterator[Any]:
        for event in generate(*asked, **named):
            yield replace(event, preview=broken) if isinstance(event, Progress) else event

    monkeypatch.setattr(engine, "generate", with_previews)
    assert main(["generate", "a cat", "--steps", "4", "-o", "cat.png", "--preview-dir", "seen"]) == 0
    assert (tmp_path / "cat.png").exists() and names(tmp_path / "seen") == []
    assert capsys.readouterr().err.count("avila: no more previews: the VAE returned NaN") == len(tried) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preview-every", "2"], "--preview-every only means something with --preview-dir DIR"),
        (["-m", "x", "--preview-decoder", "t"], "--preview-decoder only means something with --preview-dir DIR"),
        (["--preview-dir", ""], "empty name"),
        (["--preview-dir", "seen", "--preview-every", "0"], "--preview-every is 0; it must be 1 or more"),
        (["--preview-dir", "seen", "--procedural"], "--preview-dir only means something with a model"),
        (["--preview-dir", "seen", "--preview-decoder", "t"], "--preview-decoder only means .* a checkpoint of yours"),
    ],
)
def test_options_that_mean_nothing(
    options: list[str], words: str, engine: FlatEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["generate", "a cat", *options]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1

    assert re.search(words, said), said
    assert not engine.requests and not (tmp_path / "seen").exists()


def test_a_folder_that_cannot_be(engine: FlatEngine, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert main(["generate", "a cat", "--preview-dir", "file"]) == 1
    assert "choose another --preview-dir" in capsys.readouterr().err
    assert not engine.requests


def test_the_decoder_is_found_by_name(engine: FlatEngine) -> None:
    asked = [
        "generate",
        "a cat",
        "-m",
        "m",
        "--embeddings-dir",
        "e",
        "--preview-dir",
        "p",
        "--preview-decoder",
        "taesd",
    ]
    assert main(asked) == 0
    assert engine.options["preview_decoder"] == Path("found/taesd/taesd")
    assert main(["generate", "a cat", "-m", "m"]) == 0
    assert engine.options["preview_decoder"] is None


@pytest.fixture
def files(tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A narrow model, and a narrow tiny autoencoder under the names of the original."""
    from avila_diffusion.checkpoint.load import build
    from avila_diffusion.checkpoint.safetensors import write_safetensors
    from avila_diffusion.config import TinyVAEConfig
    from avila_diffusion.models.taesd import TinyVAE

    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, tensor in build(lambda: TinyVAE(TinyVAEConfig(channels=16))).state_dict().items():
        half, _, number, rest = name.split(".", 3)
        ours = f"{half}.{int(number) + (half == 'decoder')}.{rest}"
        noise = torch.randn(tensor.shape, generator=generator)
        state[ours] = noise / noise[0].numel() ** 0.5 if noise.dim() == 4 else 0.1 * noise
    write_safetensors(tmp_path / "taesd.safetensors", state)
    yield str(tiny_checkpoint("sd1")), "taesd.safetensors"
    torch.set_num_threads(threads)  # which the command line has set


RUN = ["generate", "a hill", "--steps", "4", "--sampler", "Euler", "-s", "7", "-W", "64", "-H", "72"]
RUN += ["--device", "cpu", "-t", "1"]


def test_a_real_run(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, taesd = files
    asked = [*RUN, "-m", model, "--vae", taesd, "-o", "hill.png", "--preview-every", "2"]
    assert main([*asked, "--preview-dir", "small"]) == 0
    assert names(tmp_path / "small") == ["hill-1-002.png", "hill-1-004.png"]
    for path in (tmp_path / "small").iterdir():
        with PIL.Image.open(path) as small:
            assert small.size == (8, 9)
    first = (tmp_path / "hill.png").read_bytes()
    assert main([*asked, "--preview-dir", "large", "--preview-decoder", taesd]) == 0
    with PIL.Image.open(tmp_path / "large" / "hill-1-004.png") as last, PIL.Image.open(tmp_path / "hill.png") as made:
        assert last.size == made.size == (64, 72)
        apart = np.asarray(last).astype(int) - np.asarray(made).astype(int)
        assert np.abs(apart).max() <= 1, "Euler's last guess is the picture"
    assert (tmp_path / "hill.png").read_bytes() == first, "previews change nothing"
    capsys.readouterr()
    assert main(["inspect", taesd]) == 0
    assert "taesd.safetensors: a tiny autoencoder (TAESD)" in capsys.readouterr().out


def test_a_plan_with_both(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SECONDS_A_KIND", 0.0)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "TOUCHED", 1 << 20)
    model, taesd = files
    plan = ["plan", *RUN[1:], "-m", model, "--vae", taesd]
    assert main([*plan, "--preview-decoder", taesd]) == 0
    assert "fast: peak" in capsys.readouterr().out


def test_a_resumed_run(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, taesd = files
    assert main([*RUN, "-m", model, "--journal", "a.journal", "-o", "hill.png"]) == 0
    picture = (tmp_path / "hill.png").read_bytes()
    (tmp_path / "hill.png").unlink()
    assert main(["resume", "a.journal", "--preview-dir", "seen", "--preview-decoder", taesd]) == 0
    assert names(tmp_path / "seen") == [f"hill-1-00{step}.png" for step in (1, 2, 3, 4)]
    assert (tmp_path / "hill.png").read_bytes() == picture
    with PIL.Image.open(tmp_path / "seen" / "hill-1-001.png") as seen:
        assert seen.size == (64, 72)
    branch = ["resume", "a.journal", "--branch-at", "2", "--cfg", "3", "-o", "other.png", "--preview-every", "4"]
    assert main([*branch, "--preview-dir", "branch"]) == 0
    assert names(tmp_path / "branch") == ["other-1-004.png"]
    capsys.readouterr()
    assert main(["resume", "a.journal", "-o", "third.png", "--preview-every", "2"]) == 2
    assert "--preview-every only means something with --preview-dir" in capsys.readouterr().err
