"""`avila generate --journal`, `resume` and `replay`, as a user meets them: killed, gone on with, branched, verified."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avila_diffusion import kernels
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.cli import main
from avila_diffusion.images import Image, read_image
from avila_diffusion.kernels import native
from avila_diffusion.models.unet import UNet
from avila_diffusion.pipeline import provenance
from avila_diffusion.pipeline.journal import Journal

LINE = ("generate", "a cat", "-s", "7", "-W", "64", "-H", "64", "--sampler", "Euler a", "-t", "1")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, a cache of its own, and one thread; what a resumed run takes over is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path / "cache"))
    threads, enabled = torch.get_num_threads(), kernels.ENABLED
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    kernels.ENABLED = enabled


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may change."""
    return Path(shutil.copy(tiny_checkpoint("sd1"), tmp_path / "tiny.safetensors"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward of the UNet."""
    calls: list[int] = []
    forward = UNet.forward

    def counted(self: UNet, *given: Any, **named: Any) -> Any:
        calls.append(len(calls))
        return forward(self, *given, **named)

    monkeypatch.setattr(UNet, "forward", counted)
    return calls


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main([str(word) for word in words]) in (1, 2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("avila: error: ")
    assert "this is a bug" not in said
    return said


def kill_at(size: int, journal: Path, *words: str | Path) -> None:
    """Start avila and kill it with signal 9 (TerminateProcess on Windows) when its journal has grown to `size` bytes."""
    code = "import sys; from avila_diffusion.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", code, *(str(word) for word in words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < size:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0


def test_killed_twice_a_job_has_the_same_bytes(model: Path, tmp_path: Path, made: list[int]) -> None:
    job = (*LINE, "--steps", "30", "-b", "2", "--count", "2", "-m", model)
    run(*job, "-q", "-o", "whole.png")
    undisturbed = len(made)
    journal = tmp_path / "j"
    kill_at(25_000, journal, *job, "-o", "p.png", "--journal", journal)
    with Journal.read(journal) as read:
        first = read.calls
    kill_at(100_000, journal, "resume", journal)
    with Journal.read(journal) as read:
        second = read.calls
    assert 0 < first < second < undisturbed == 120
    made.clear()
    run("resume", journal)
    assert len(made) == undisturbed - second
    for number in range(1, 5):
        assert (tmp_path / f"p-{number}.png").read_bytes() == (tmp_path / f"whole-{number}.png").read_bytes()
    assert not list(tmp_path.glob(".avila-*"))


@pytest.mark.parametrize("output", ["x.png", "made/"])
def test_the_grid_is_part_of_what_is_gone_on_with(
    model: Path, made: list[int], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = (*LINE, "--steps", "2", "--count", "3", "-m", model, "--grid")
    run(*job, "-o", output, "--journal", "whole.journal")
    whole = {path: path.read_bytes() for path in (Path(line) for line in capsys.readouterr().out.splitlines())}
    *pictures, grid = whole
    assert grid.name == ("x-grid.png" if output == "x.png" else "grid.png")
    calls = len(made)
    run("resume", "whole.journal")  # nothing is missing
    assert list(map(Path, capsys.readouterr().out.splitlines())) == [*pictures, grid]
    grid.unlink()
    run("resume", "whole.journal")  # of pictures that are all on disk
    assert list(map(Path, capsys.readouterr().out.splitlines())) == [*pictures, grid]
    grid.unlink()
    pictures[1].unlink()
    run("resume", "whole.journal")  # of some that are on disk, and one that is not
    assert {path: path.read_bytes() for path in whole} == whole
    run("resume", "whole.journal", "-o", "other.png")
    assert Path("other-grid.png").read_bytes() == grid.read_bytes()
    assert len(made) == calls
    assert len(list(grid.parent.glob("*grid*"))) == (2 if output == "x.png" else 1)
    run(*LINE, "--steps", "2", "--count", "2", "-m", model, "-o", "plain.png", "--journal", "plain.journal")
    run("resume", "plain.journal")
    assert not Path("plain-grid.png").exists()


def test_only_what_is_missing_is_written(
    model: Path, tmp_path: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(*LINE, "--steps", "2", "--count", "3", "-m", model, "--journal", "j")
    files = sorted((tmp_path / "outputs").iterdir())
    assert [file.name for file in files] == ["00001-7.png", "00002-8.png", "00003-9.png"]
    before = [file.read_bytes() for file in files]
    files[0].write_bytes(b"edited by its owner")
    files[1].unlink()
    made.clear()
    capsys.readouterr()
    run("resume", "j")
    assert capsys.readouterr().out.splitlines() == [str(file.relative_to(tmp_path)) for file in files]
    assert files[0].read_bytes() == b"edited by its owner"
    assert [file.read_bytes() for file in files[1:]] == before[1:]
    run("resume", "j", "-o", "again/")
    assert [file.read_bytes() for file in sorted((tmp_path / "again").iterdir())] == before
    assert made == []
    run("resume", "j", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["calls"] == 6


def test_a_stopped_run_says_how_to_go_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*LINE, "--steps", "3", "-m", model, "-o", "whole.png")
    save = Image.save_png

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "save_png", stop)
    assert main([*LINE, "--steps", "3", "-m", str(model), "--journal", "j"]) == 130
    assert "j holds 3 model calls; go on with: avila resume j" in capsys.readouterr().err
    monkeypatch.setattr(Image, "save_png", save)
    run("resume", "j")
    assert Path("outputs/00001-7.png").read_bytes() == Path("whole.png").read_bytes()


def test_threads_and_kernels_are_taken_over(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*LINE, "--steps", "2", "-m", model, "--journal", "j")
    torch.set_num_threads(2)
    kernels.ENABLED = False
    run("resume", "j", "-o", "again.png")
    assert (torch.get_num_threads(), kernels.ENABLED) == (1, True)
    monkeypatch.setattr(provenance, "__version__", "99")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9000")
    said = refused(capsys, "resume", "j", "-o", "again.png")
    assert "the version of avila_diffusion is 99, recorded was" in said
    assert "the instruction set is AVX9000" in said
    run("resume", "j", "-o", "again.png", "--anyway")


def test_other_kernels_than_recorded_are_told(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another width of vectors or compiler gives other bits; journals of before recorded no more than "avila"."""
    monkeypatch.setattr(native, "identity", lambda: None)
    run(*LINE, "--steps", "2", "-m", model, "--journal", "j")
    run("resume", "j", "-o", "again.png")
    monkeypatch.setattr(native, "identity", lambda: "avila 0123456789ab, 8 lanes, gcc 12.2.0")
    said = refused(capsys, "resume", "j", "-o", "again.png")
    assert "the choice of kernels is avila 0123456789ab, 8 lanes, gcc 12.2.0, recorded was avila" in said
    run("resume", "j", "-o", "again.png", "--anyway")


def test_another_model_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*LINE, "--steps", "2", "-m", model, "--journal", "unhashed")
    run(*LINE, "--steps", "2", "-m", model, "--journal", "j")  # its hash is known by now
    moved = model.rename(tmp_path / "moved.safetensors")
    assert "is not there" in refused(capsys, "resume", "j", "-o", "x.png")
    run("resume", "j", "-m", moved, "-o", "x.png")
    data = bytearray(moved.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    assert "is not the file that the run was made of" in refused(capsys, "resume", "j", "-o", "y.png")
    assert "is not the file that the run was made of" in refused(capsys, "resume", "unhashed", "-o", "y.png")
    assert "is not the file" in refused(capsys, "resume", "j", "-m", model, "-o", "y.png")
    model.write_bytes(moved.read_bytes())  # another time, the same content
    run("resume", "j", "-o", "z.png")


def test_borders_of_samplers_that_walk_steps_of_their_own(
    model: Path, made: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """3 steps of UniPC are 4 in AUTOMATIC1111's grid, 5 of DDIM are 4: the borders are those that were walked."""
    run(*LINE, "--steps", "3", "-m", model, "--journal", "u", "-o", "u.png", "--sampler", "UniPC")
    assert len(made) == 4
    run("resume", "u", "--branch-at", "3", "-p", "a dog", "-o", "branch.png")
    assert len(made) == 5
    assert (read_image("branch.png").pixels != read_image("u.png").pixels).any()
    run("resume", "u", "--branch-at", "4", "-p", "a dog", "-o", "last.png")
    assert (read_image("last.png").pixels == read_image("u.png").pixels).all()
    run(*LINE, "--steps", "5", "-m", model, "--journal", "d", "-o", "d.png", "--sampler", "DDIM")
    for journal, border in (("u", "5"), ("d", "5"), ("d", "600")):
        said = refused(capsys, "resume", journal, "--branch-at", border, "-p", "a dog", "-o", "n.png")
        assert f"picture 1 took 4 sampler steps; branch at 0 to 4, not {border}" in said
    assert "there is no border -1" in refused(capsys, "resume", "d", "--branch-at", "-1", "-p", "a dog")


def test_branches(model: Path, made: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    run(*LINE, "--steps", "5", "-m", model, "--journal", "j", "-o", "a.png", "-b", "2")
    journal = Path("j").read_bytes()
    made.clear()
    run("resume", "j", "--branch-at", "3", "-o", "same.png")
    assert len(made) == 2 * 2
    made.clear()
    run("resume", "j", "--branch-at", "3", "-p", "a dog", "--journal", "k", "-o", "dog.png")
    assert len(made) == 2 * 2
    run("resume", "j", "--branch-at", "0", "-p", "a dog", "-o", "anew.png")
    run(*LINE[:1], "a dog", *LINE[2:], "--steps", "5", "-m", model, "-o", "dogs.png", "-b", "2")
    run("resume", "j", "--branch-at", "5", "-p", "a dog", "-o", "late.png")
    run("resume", "j", "--branch-at", "2", "--sampler", "DPM++ 2M", "--cfg", "2", "-o", "other.png")
    for number in (1, 2):
        first, same, dog, anew, dogs, late, other = (
            read_image(f"{name}-{number}.png") for name in ("a", "same", "dog", "anew", "dogs", "late", "other")
        )
        assert Path(f"same-{number}.png").read_bytes() == Path(f"a-{number}.png").read_bytes()
        assert (late.pixels == first.pixels).all()
        assert (anew.pixels == dogs.pixels).all()
        assert (dog.pixels != first.pixels).any() and (dog.pixels != dogs.pixels).any()
        assert (other.pixels != first.pixels).any()
        assert "Branched at: 3, Before the branch: prompt a cat" in str(dog.infotext)
        assert same.infotext == first.infotext
    assert Path("j").read_bytes() == journal
    made.clear()
    run("resume", "k", "-o", "again.png")  # a branch's own journal stands by itself
    assert made == []
    assert Path("again-2.png").read_bytes() == Path("dog-2.png").read_bytes()
    assert "only means something with --branch-at" in refused(capsys, "resume", "j", "-p", "a dog")
    assert "there is no border 6" in refused(capsys, "resume", "j", "--branch-at", "6")
    assert "is there already" in refused(capsys, "resume", "j", "--branch-at", "1", "--journal", "k", "-o", "n.png")
    assert "not replayed: Branched at" in refused(capsys, "replay", "dog-1.png", "-m", model)


def test_nothing_to_record(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "makes no model calls" in refused(capsys, "generate", "a cat", "--procedural", "--journal", "j")
    assert not Path("j").exists()
    run(*LINE, "--steps", "1", "-m", model, "--journal", "j", "-o", "a.png")
    assert "is there already" in refused(capsys, *LINE, "-m", model, "--journal", "j")
    assert "cannot be opened" in refused(capsys, "resume", "nowhere")
    assert "is not a journal" in refused(capsys, "resume", "a.png")


def test_replay(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path))
    run(*LINE, "--steps", "3", "-m", model, "--trail", "-o", "a.png", "-b", "2", "--count", "2")
    run("replay", "a-4.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("a-4.png").read_bytes()
    capsys.readouterr()
    files = set(tmp_path.iterdir())
    run("replay", "a-4.png", "--verify")
    assert capsys.readouterr().out == "a-4.png: identical in all 3 calls\n"
    assert set(tmp_path.iterdir()) == files
    shutil.move("a-3.trail", "a-4.trail")  # of another seed
    assert main(["replay", "a-4.png", "--verify", "-q"]) == 1
    assert "a-4.png: differs first at call 1 (step 1, sigma " in capsys.readouterr().out
    Path("a-4.trail").unlink()
    assert main(["replay", "a-4.png", "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "identical in every pixel"
    moved = model.rename(tmp_path / "renamed.safetensors")
    run("replay", "a-4.png", "-q", "-m", moved)
    model.write_bytes(moved.read_bytes()[:-1] + b"\1")
    run("replay", "a-4.png", "--verify", "-q")  # found by its hash, not by its name
    Image(read_image("a-4.png").pixels).save_png("bare.png")
    assert "carries no metadata" in refused(capsys, "replay", "bare.png")
    moved.unlink()
    assert "has another hash than" in refused(capsys, "replay", "a-4.png")


def test_replay_with_parts_that_lie_elsewhere(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, refiner, vae = tiny_checkpoint("sdxl"), tmp_path / "refiner.safetensors", tmp_path / "vae.safetensors"
    shutil.copy(tiny_checkpoint("sdxl_refiner"), refiner)
    prefix = "first_stage_model."
    held = {name: tensor for name, tensor in load_file(base).items() if name.startswith(prefix)}
    write_safetensors(vae, {name.removeprefix(prefix): tensor * 0.9 for name, tensor in held.items()})
    run(*LINE, "--steps", "2", "-m", base, "--refiner", refiner, "--refiner-switch", "0.5", "--vae", vae, "-o", "a.png")
    (tmp_path / "elsewhere").mkdir()
    moved = {path.stem: shutil.move(path, tmp_path / "elsewhere") for path in (refiner, vae)}
    assert "no vae named 'vae.safetensors'" in (said := refused(capsys, "replay", "a.png", "-m", base))
    assert said.endswith("; say with --vae which to take")
    asked = ("replay", "a.png", "-m", base, "--vae", moved["vae"], "--refiner", moved["refiner"])
    run(*asked, "--verify")
    told = capsys.readouterr()
    assert told.out == "a.png: identical in every pixel\n"
    assert "the metadata name" not in told.err
    run(*LINE, "--steps", "2", "-m", base, "-o", "bare.png")
    capsys.readouterr()
    assert main(["replay", "bare.png", *map(str, asked[2:]), "--verify"]) == 1
    assert f"the metadata name no VAE; {moved['vae']} is used all the same" in capsys.readouterr().err
    assert main([*map(str, asked), "--verify", "--vae", str(base)]) == 1
    assert f"{base} is not the VAE that the metadata name (vae.safetensors)" in capsys.readouterr().err


def test_replay_with_a_lora(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path))
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    draw = torch.Generator().manual_seed(1)
    (tmp_path / "loras").mkdir()
    write_safetensors(
        tmp_path / "loras" / "style.safetensors",
        {
            f"{name}.lora_down.weight": torch.randn(2, 64, generator=draw),
            f"{name}.lora_up.weight": torch.randn(64, 2, generator=draw),
            f"{name}.alpha": torch.tensor(2.0),
        },
    )
    run(*LINE, "--steps", "2", "-m", model, "--lora", "style:0.5", "-o", "a.png", "--journal", "j")
    run("replay", "a.png", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("a.png").read_bytes()
    run("resume", "j", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path("a.png").read_bytes()
