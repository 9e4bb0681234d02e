"""The bundled model: found, drawn at its own size, resized to the one asked for, and saying so."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import sd_parsers
import torch

from avila_diffusion import AvilaDiffusion, GenerateRequest, GenerateResult
from avila_diffusion.checkpoint import bundled as bundled_module
from avila_diffusion.checkpoint.bundled import bundled_model, resource
from avila_diffusion.checkpoint.folders import find_model
from avila_diffusion.checkpoint.inspection import inspect
from avila_diffusion.cli import main
from avila_diffusion.errors import FileProblem, RequestError
from avila_diffusion.images import resize
from avila_diffusion.infotext import read

PACKAGED = Path(str(resource()))
packaged = pytest.mark.skipif(not PACKAGED.is_file(), reason="this source folder has no bundled model")


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, a cache and a current folder of our own."""
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AVILA_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_picture(bundled: Path) -> None:
    result = AvilaDiffusion.bundled().text_to_image("a red apple", seed=1)
    assert result.to_pil().size == (256, 256)
    assert result.drawn_at == (128, 128)
    request = result.request
    assert (request.steps, request.guidance_scale) == (2, 3.5)
    assert (request.sampler, request.schedule) == ("DPM++ 2M", "Karras")
    assert result.report.prediction == "v"
    plain = AvilaDiffusion.bundled().text_to_image("a red apple", None, 128, 128, seed=1)
    assert plain.drawn_at is None
    assert (resize(plain.to_numpy(), 256, 256) == result.to_numpy()).all()


def test_previews_are_pictures(bundled: Path) -> None:
    """Of latents that no published factors are for: drawn by its own decoder, the last as the picture is."""
    previews, made = [], None
    diffusion = AvilaDiffusion.bundled()
    for event in diffusion.generate(diffusion.request("a red apple", width=128, height=128)):
        if isinstance(event, GenerateResult):
            made = event[0].to_numpy()
        elif event.preview is not None:
            previews.append(event.preview().pixels)
    assert made is not None and len(previews) == 2
    assert [one.shape for one in previews] == [(128, 128, 3)] * 2
    assert (previews[0] != previews[1]).any()
    assert np.abs(previews[1].astype(int) - made).max() <= 1 and np.ptp(made, axis=2).any()


def test_previews_are_tiled_as_the_picture_is(bundled: Path) -> None:
    """Whatever was decoded before: a server's runs take turns."""
    diffusion = AvilaDiffusion.bundled(sampler="Euler")
    runs = [
        diffusion.generate(diffusion.request("a red apple", width=128, height=128, seed=1, tiling=tiling))
        for tiling in ("x", "none")
    ]
    shown: list[Any] = [[], []]
    pictures: list[Any] = [None, None]
    for _ in range(6):
        for number, run in enumerate(runs):
            event = next(run, None)
            if isinstance(event, GenerateResult):
                pictures[number] = event[0].to_numpy().astype(int)
            elif event is not None and event.preview is not None:
                shown[number].append(event.preview().pixels)
    assert all(np.abs(made[-1] - picture).max() <= 1 for made, picture in zip(shown, pictures, strict=True))
    assert np.abs(pictures[0] - pictures[1]).max() > 5


def test_what_is_asked_goes_before_what_the_file_recommends(bundled: Path) -> None:
    diffusion = AvilaDiffusion.bundled(steps=3, dtype="bfloat16", device="cpu", threads=1, mmap=False)
    request = diffusion.request("a cat", guidance_scale=7.0, sampler="Euler", width=64)
    assert request == GenerateRequest(prompt="a cat", steps=3, guidance_scale=7.0, sampler="Euler", width=64)
    # A request made without the object is run as it is, but for what it leaves open.
    *_, result = diffusion.generate(GenerateRequest(prompt="a cat", steps=1))
    assert (result.request.steps, result.request.guidance_scale, result.request.width) == (1, 7.0, 256)  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="unknown field vae"):
        AvilaDiffusion.bundled(vae="x")  # type: ignore[call-arg]


def test_a_recommended_schedule_gives_way_to_noise_levels(bundled: Path) -> None:
    diffusion = AvilaDiffusion.bundled()
    assert diffusion.request("a cat").resolved(64).schedule == "Karras"
    request = diffusion.request("a cat", sigmas=(14.6, 2.0, 0.0))
    assert (request.resolved(64).sampler, request.resolved(64).schedule, request.steps) == ("DPM++ 2M", "Automatic", 2)
    diffusion.resolved(request)
    with pytest.raises(RequestError, match=r"names Karras; ask for 'DPM\+\+ 2M'"):
        diffusion.request("a cat", sigmas=(14.6, 2.0, 0.0), sampler="DPM++ 2M Karras")


def test_the_file_behaves_the_same_by_any_name(bundled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(bundled.read_bytes())
    models = (AvilaDiffusion.bundled(), AvilaDiffusion.with_model("bundled"), AvilaDiffusion.with_model(other))
    made = [model.text_to_image("a cat", None, 192, 96, seed=3) for model in models]
    assert {result.drawn_at for result in made} == {(176, 88)}
    assert len({result.to_numpy().tobytes() for result in made}) == 1
    fields = [read(result[0].infotext or "").fields for result in made]
    assert [told["Model"] for told in fields] == ["bundled", "bundled", "other"]
    assert len({told["Model hash"] for told in fields}) == 1


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [((100, 75), (160, 120)), ((300, 451), (112, 168)), ((40, 10), (256, 64)), ((1, 1), (128, 128))],
)
def test_any_size_is_made(bundled: Path, asked: tuple[int, int], drawn: tuple[int, int]) -> None:
    result = AvilaDiffusion.bundled(steps=1).text_to_image("a cat", None, *asked)
    assert (result.to_pil().size, result.drawn_at) == (asked, drawn)


def test_a_long_picture_is_refused_before_any_work(bundled: Path) -> None:
    diffusion = AvilaDiffusion.bundled()
    with pytest.raises(RequestError, match=r"^1024x128 is longer than 4:1, .*; ask for at most 512x128$"):
        diffusion.generate(GenerateRequest(width=1024, height=128))
    with pytest.raises(RequestError, match=r"at most 128x512$"):
        diffusion.text_to_image("a cat", None, 128, 513)


def test_the_metadata_says_it_and_asks_for_the_same_picture(bundled: Path, tmp_path: Path) -> None:
    diffusion = AvilaDiffusion.bundled()
    result = diffusion.text_to_image("a cat, sitting", "dog: big", 192, 128, seed=7)
    (path,) = result.save_png(tmp_path / "cat.png")
    with PIL.Image.open(path) as saved:
        infotext = saved.info["parameters"]
    assert "Size: 192x128, " in infotext
    assert "Drawn at: 168x112, Resized with: Lanczos, Version: " in infotext
    parsed = read(infotext)
    assert (parsed.fields["Drawn at-1"], parsed.fields["Drawn at-2"]) == ("168", "112")
    assert parsed.fields["Resized with"] == "Lanczos"
    *_, again = diffusion.generate(GenerateRequest.from_dict(parsed.request_values()))
    assert (again.to_numpy() == result.to_numpy()).all()  # type: ignore[union-attr]
    found = sd_parsers.ParserManager().parse(path)
    assert found.prompts[0].value == "a cat, sitting"
    assert found.metadata["Drawn at"] == "168x112"
    assert found.metadata["Resized with"] == "Lanczos"


def test_a_package_without_it_says_so(no_bundled: None, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (AvilaDiffusion.bundled, bundled_model, lambda: find_model("bundled")):
        with pytest.raises(FileProblem, match=r"^the bundled model is not in this copy .*--procedural$"):
            call()
    assert main(["generate", "a cat"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("avila: error: the bundled model is not in this copy of avila_diffusion (")
    assert said.err.count("\n") == 1
    assert main(["generate", "a cat", "--procedural", "-W", "64", "-H", "64", "-q", "-o", "a.png"]) == 0


def test_a_package_in_a_zip_gives_a_copy(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.write(bundled, "data/bundled.safetensors")
    with zipfile.ZipFile(tmp_path / "wheel.whl") as wheel:
        inside = zipfile.Path(wheel, "data/bundled.safetensors")
        monkeypatch.setattr(bundled_module, "resource", lambda: inside)
        try:
            path = bundled_model()
            assert path == bundled_model()
            assert path.name == "bundled.safetensors"
            assert path.read_bytes() == bundled.read_bytes()
        finally:
            bundled_module._unpacked().cleanup()
            bundled_module._unpacked.cache_clear()
    assert not path.exists()


def test_the_name_is_taken_before_files_of_that_name(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    assert find_model("bundled") == find_model(" bundled ", paths=False) == bundled


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(list(arguments)) == 0
    return capsys.readouterr()


def test_the_command_line(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "generate", "a red apple", "-s", "1", "-o", "a.png")
    assert said.out == "a.png\n"
    first, second, *_, last = said.err.splitlines()
    assert first == (
        "avila: no model given: drawn by the small bundled one; -m FILE takes a checkpoint, --procedural needs none"
    )
    assert second.startswith("avila: sampling")  # one line says what draws
    assert last.startswith("avila: 256x256, resized from the 128x128 that the model draws, 2 steps, DPM++ 2M, Karras, ")
    told = json.loads(run(capsys, "generate", "a red apple", "-s", "1", "-W", "96", "-H", "144", "--json", "-q").out)
    assert (told["size"], told["drawn_at"], told["steps"]) == ([96, 144], [112, 168], 2)
    assert told["model"] == str(bundled)
    named = run(capsys, "generate", "a red apple", "-s", "1", "-m", "bundled", "-o", "b.png")
    assert "no model given" not in named.err
    with PIL.Image.open("a.png") as one, PIL.Image.open("b.png") as other:
        assert (np.asarray(one) == np.asarray(other)).all()


def test_it_is_listed_and_inspected(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, none = run(capsys, "models").out.splitlines()
    assert line.startswith("bundled ")
    assert line.endswith(f"{bundled}  (comes with avila, and draws where no -m is given)")
    assert none.startswith("no checkpoints found; ")
    (row,) = json.loads(run(capsys, "models", "--json").out)
    assert row == {
        "name": "bundled", "path": str(bundled), "role": "checkpoint", "size": bundled.stat().st_size
    }  # fmt: skip
    assert "drawn about its own size and resized  (metadata avila.fixed_size)" in run(capsys, "inspect", "bundled").out


@packaged
def test_the_real_file_is_what_it_should_be() -> None:
    found = inspect(PACKAGED)
    assert found.problem == ""
    assert found.bytes <= 40e6
    assert set(found.dtypes) == {"F16"}
    wanted = {"avila.family", "avila.fixed_size", "avila.default_size", "avila.default_steps", "avila.default_guidance"}
    assert sorted(wanted - set(found.metadata)) == []
    assert found.metadata["avila.size"] == "128"


@packaged
def test_the_real_file_draws() -> None:
    result = AvilaDiffusion.bundled(steps=4).text_to_image("a 3d render of a red apple", seed=1)
    assert result.to_pil().size == (512, 512)
    assert result.drawn_at == (128, 128)
    pixels = result.to_numpy().astype(float)
    assert pixels.std() > 10
    assert np.abs(np.diff(pixels, axis=0)).mean() < 20  # a picture, not noise
