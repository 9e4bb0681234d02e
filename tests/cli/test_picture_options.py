"""Pictures on the command line: what is asked of the engine, and whole runs on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
import torch

from avila_diffusion.cli import main
from avila_diffusion.errors import OutputProblem

if TYPE_CHECKING:
    from .conftest import FlatEngine


def save(path: Path, pixels: Any) -> str:
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


def read(name: str) -> Any:
    with PIL.Image.open(name) as picture:
        return np.asarray(picture)


def photo(width: int = 64, height: int = 64) -> Any:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3))


def test_every_option_becomes_its_field(engine: FlatEngine, tmp_path: Path) -> None:
    image, mask = save(tmp_path / "i.png", photo()), save(tmp_path / "m.png", photo()[:, :, 0])
    arguments = (
        f"--strength 0.4 --exact-steps --resize-mode crop --extra-noise 0.1 --noise-multiplier 0.9 --image-cfg 2 "
        f"--depth {image} --mask {mask} --mask-blur 2 --mask-invert --mask-soft --masked-content noise --inpaint-area masked "
        "--mask-padding 8 --mask-weight 0.5 --outpaint left=8,down=16 --tiling x --refiner-by step --refiner-switch 0.6"
    ).split()
    assert main(["generate", "a cat", "-m", "x", "-i", image, *arguments]) == 0
    (request,) = engine.requests
    assert request.image is not None
    assert request.mask is not None
    assert request.depth is not None
    values = request.to_dict()
    wanted = {
        "strength": 0.4, "exact_steps": True, "resize_mode": "crop", "extra_noise": 0.1, "noise_multiplier": 0.9,
        "image_guidance_scale": 2.0, "mask_blur": 2.0, "mask_invert": True, "mask_soft": True, "masked_content": "noise",
        "inpaint_area": "masked", "mask_padding": 8, "mask_weight": 0.5, "outpaint": (8, 0, 0, 16), "tiling": "x",
        "refiner_by": "step", "refiner_switch": 0.6,
    }  # fmt: skip
    assert {name: values[name] for name in wanted} == wanted


def test_a_second_pass_is_asked_for(engine: FlatEngine) -> None:
    line = "--hires-size 768x --hires-steps 5 --hires-sampler ddim --hires-schedule karras --hires-prompt dog --hires-cfg 4"
    assert main(["generate", "a cat", *line.split(), "--hires-upscaler", "Latent (bicubic)"]) == 0
    (request,) = engine.requests
    assert (request.hires_width, request.hires_height, request.hires_steps) == (768, None, 5)
    assert (request.hires_sampler, request.hires_schedule, request.hires_prompt) == ("ddim", "karras", "dog")
    assert (request.hires_guidance_scale, request.hires_upscaler) == (4.0, "Latent (bicubic)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--image missing.png", "missing.png"),
        ("--mask m.png", "mask needs a picture"),
        ("--image m.png --outpaint left", "--outpaint 'left' is not understood; write it as left=128,right=128"),
        ("--image m.png --outpaint left=1,left=2", "is not understood"),
        ("--image m.png --outpaint left=0", "outpaint adds nothing"),
        ("--hires-size 12", "--hires-size '12' is no size; write it as 1024x1536"),
        ("--hires-scale 2 --hires-size 12x", "are two sizes"),
        ("--hires-scale 2 --image m.png", "the second pass of a high-resolution fix follows text to image"),
        ("--image m.png --mask m.png --resize-mode latent", "resize_mode latent"),
        ("--image no.txt", "no.txt"),
        ("--strength 2", "strength is 2.0; it must be from 0 to 1"),
        ("--hires-upscaler ESRGAN", "hires_upscaler 'ESRGAN' is unknown"),
        ("--refiner x", "--refiner only means something with a checkpoint"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: str, says: str, engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m.png", photo())
    (tmp_path / "no.txt").write_text("no picture", encoding="utf-8")
    assert main(["generate", "a cat", *arguments.split()]) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert says in said
    assert said.count("\n") == 0
    assert not engine.requests


@pytest.fixture
def tiny(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs `avila generate` on a tiny model; the JSON that it prints. One thread: so small a network loses by a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, command: str = "generate") -> dict[str, Any]:
        import contextlib
        import io

        out = io.StringIO()
        options = ["-m", str(tiny_checkpoint("sd1")), "--json", "-q"]
        with contextlib.redirect_stdout(out):
            assert main([command, *arguments, *options]) == 0
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    yield run
    torch.set_num_threads(threads)


def test_inpainting_from_files_and_again(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    image = save(tmp_path / "i.png", photo(80, 64))
    mask = np.zeros((64, 80))
    mask[20:40, 20:40] = 255
    masked = save(tmp_path / "m.png", mask)
    asked = ["a cat", "-i", image, "--mask", masked, "--steps", "2", "-s", "3", "--mask-blur", "0", "-o", "made.png"]
    made = tiny(*asked, "--strength", "0.8")
    pixels = read("made.png")
    assert (pixels[:20] == photo(80, 64)[:20]).all()
    assert "Denoising strength: 0.8" in made["infotext"][0]
    again = ["--from", "made.png", "-i", image, "--mask", masked, "-o", "again.png"]
    tiny(*again)
    assert (read("again.png") == pixels).all()
    verified = tiny("made.png", "--image", image, "--mask", masked, "--verify", command="replay")
    assert verified["same"]


def test_pictures_are_asked_for_again(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "i.png", photo())
    tiny("a cat", "-i", image, "--steps", "1", "-s", "3", "-o", "made.png")
    assert main(["generate", "--from", "made.png", "-m", "x"]) == 2
    assert (
        "made.png was made from another picture, which it does not hold; give that with --image"
        in capsys.readouterr().err
    )
    assert main(["replay", "made.png"]) == 2


def test_a_grid_of_all_pictures(tiny: Callable[..., dict[str, Any]]) -> None:
    made = tiny("a cat", "--steps", "1", "-s", "3", "--count", "3", "--grid", "-o", "x.png")
    assert [Path(path).name for path in made["paths"]] == ["x-1.png", "x-2.png", "x-3.png", "x-grid.png"]
    grid, last = read("x-grid.png"), read("x-3.png")
    assert grid.shape == (128, 128, 3)
    assert (grid[64:, :64] == last).all()
    assert not grid[64:, 64:].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-W 4096 -H 4096 --count 5 --grid", "a grid of 3x2 pictures of 4096x4096 is too large; make fewer of them"),
        (
            "-W 4096 -H 64 --count 20 --grid -o x.webp",
            "a WebP has at most 16,383 pixels a side, and the picture is 20480x256",
        ),
        (
            "-W 1024 -H 1024 --count 9 --batch 8 --hires-scale 2 --grid",
            "a grid of 9x8 pictures of 2048x2048 is too large",
        ),
        (
            "-i wide.png --outpaint right=4096 --inpaint-area masked -o x.webp",
            "and the picture is 16640x8; save it as PNG",
        ),
    ],
)
def test_what_is_too_large_for_its_file_is_told_before_the_run(
    arguments: str, says: str, engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "wide.png", photo(12544, 8))
    assert main(["generate", "a cat", *arguments.split(), "--json", "-q"]) in (1, 2)
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not engine.requests


def test_what_fits_its_file_is_drawn(engine: FlatEngine) -> None:
    assert main(["generate", "a cat", "-W", "4096", "-H", "4096", "--procedural", "-o", "x.png"]) == 0
    assert main(["generate", "a cat", "--hires-size", "4096x", "-o", "x.png", "--grid"]) == 0
    assert len(engine.requests) == 2


def test_a_grid_that_fails_leaves_pictures_and_json(
    tiny: Callable[..., dict[str, Any]],
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OutputProblem("no room for a grid")

    monkeypatch.setattr("avila_diffusion.cli.outputs.Destination.save_grid", fail)
    line = ["--steps", "1", "-s", "3", "--count", "2", "--grid", "-o", "x.png", "--journal", "j", "-m"]
    for command in (["generate", "a cat", *line, str(tiny_checkpoint("sd1"))], ["resume", "j"]):
        assert main([*command, "--json", "-q"]) == 1
        said = capsys.readouterr()
        assert [Path(path).name for path in json.loads(said.out)["paths"]] == ["x-1.png", "x-2.png"]
        assert said.err == "avila: error: no room for a grid\n"
    assert Path("x-2.png").exists()
