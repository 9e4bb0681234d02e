"""Journals, trails and metadata that are given wrongly: refused in one line, before a picture is drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from avila_diffusion import kernels
from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.safetensors import write_safetensors
from avila_diffusion.cli import main
from avila_diffusion.errors import Cancelled, JournalProblem, OutputProblem, RequestError
from avila_diffusion.images import Image, read_image
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.result import Progress

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


def test_names_that_are_no_place_for_a_journal(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (*LINE, "-m", model, "-o", "a.png", "--journal")
    (tmp_path / "folder").mkdir()
    assert "has an empty name" in refused(capsys, *line, "")
    assert "is a folder; name a file in it" in refused(capsys, *line, "folder")
    assert "the folder no is not there; make it" in refused(capsys, *line, "no/j")
    Path("text").write_text("mine", encoding="utf-8")
    assert "is there already and is not a journal" in refused(capsys, *line, "text")
    if Path("/dev/full").exists():
        assert "is a device or pipe" in refused(capsys, *line, "/dev/full")
    assert Path("text").read_text(encoding="utf-8") == "mine" and not Path("a.png").exists()
    Path("j").touch()
    assert "is empty: a journal was begun there" in refused(capsys, "resume", "j")
    run(*line, "j")
    run("resume", "j", "-o", "b.png")


def test_an_empty_file_is_not_taken_from_another_run(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "j").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(JournalProblem, match="another run is writing"):
            Journal.create("j", {"request": {}})
    with Journal.create("j", {"request": {}}) as journal:
        assert journal.header["request"] == {}


def test_a_disk_that_fails_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create("j", {"request": {}})

    def fail(number: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("avila_diffusion.pipeline.journal.SECONDS_UNSYNCED", 0.0)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OutputProblem, match=r"j cannot be written \(Input/output error\); name another place"):
        journal.add_file(0, tmp_path / "a.png", written=False)
    journal.close()


def test_a_picture_of_another_dtype_is_replayed_in_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*LINE, "-m", model, "--trail", "-o", "a.png", "--dtype", "bfloat16")
    trail = json.loads(Path("a.trail").read_text(encoding="utf-8"))
    picture = read_image("a.png")
    Image(picture.pixels, infotext=picture.infotext).save_png("a.png")  # without the record, as an editor leaves it
    capsys.readouterr()
    run("replay", "a.png", "--verify")
    said = capsys.readouterr()
    assert trail["conditions"]["dtypes"][0] == "bfloat16"
    assert "identical in all 2 calls" in said.out and "in bfloat16, as recorded" in said.err
    assert main(["replay", "a.png", "--verify", "--dtype", "float32"]) == 1


def test_metadata_that_cannot_be_replayed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*LINE, "-m", model, "-o", "a.png")
    picture = read_image("a.png")
    said = str(picture.infotext)
    Image(picture.pixels, infotext=said.replace("Seed: 7", "Seed: -1")).save_png("any.png")
    assert "name no seed" in refused(capsys, "replay", "any.png")
    Image(picture.pixels, infotext=f"{said}, Sigma churn: 0.5").save_png("churn.png")
    assert "the metadata of churn.png" in refused(capsys, "replay", "churn.png")
    assert "--trail only means something with --verify" in refused(capsys, "replay", "a.png", "--trail", "nope")


def test_what_was_not_used_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (*LINE, "-m", model, "-n", "a dog", "--cfg", "1", "-o", "a.png", "--count", "2")
    run(*line, "--journal", "j")
    note = "the negative prompt was not used, because guidance is off"
    assert capsys.readouterr().err.count(note) == 1
    run(*line, "--json", "-q")
    said = capsys.readouterr()
    assert json.loads(said.out)["notes"] == [note] and said.err == ""
    run("resume", "j", "-o", "b.png", "--json", "-q")
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


def test_a_cancelled_run_with_a_journal_says_how_to_go_on(model: Path) -> None:
    diffusion = AvilaDiffusion.with_model(model, steps=3, width=64, height=64, seed=1)
    stop = Event()
    with pytest.raises(Cancelled, match=r"^cancelled; j holds \d model calls?, go on with `avila resume j`$"):
        for event in diffusion.generate(diffusion.request("a cat"), cancel=stop, journal="j"):
            if isinstance(event, Progress) and event.stage == "sample" and event.step:
                stop.set()


def write_lora(path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    names = (
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    )
    state = {}
    for name, width in zip(names, ((64, 64), (64, 128)), strict=True):
        state[f"{name}.lora_down.weight"] = torch.randn(2, width[0], generator=draw)
        state[f"{name}.lora_up.weight"] = torch.randn(width[1], 2, generator=draw)
    path.parent.mkdir()
    write_safetensors(path, state)


def test_two_weights_of_a_lora_go_everywhere(model: Path) -> None:
    write_lora(Path("loras/style.safetensors"))
    run(*LINE, "-m", model, "--lora", "style:0.8:0.5", "-o", "a.png", "--journal", "j")
    run(*LINE, "-m", model, "--lora", "style:0.5", "-o", "one.png")
    first = read_image("a.png")
    assert (first.pixels != read_image("one.png").pixels).any()
    assert "<lora:style:0.8:0.5>" in str(first.infotext)
    run("replay", "a.png", "-o", "b.png")
    run("resume", "j", "-o", "c.png")
    run("resume", "j", "--branch-at", "0", "-o", "d.png")
    run("generate", "--from", "a.png", "-t", "1", "-o", "e.png")
    for name in "bcde":
        assert (read_image(f"{name}.png").pixels == first.pixels).all(), name
    diffusion = AvilaDiffusion.with_model(model, lora=("style", 0.8, 0.5), steps=2, width=64, height=64, seed=7)
    assert (diffusion.text_to_image("a cat")[0].pixels == first.pixels).all()
    with pytest.raises(RequestError, match="the weight of LoRA style is nan"):
        AvilaDiffusion.with_model(model, lora=("style", 0.8, float("nan")))


def test_a_changed_embedding_is_noticed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = tmp_path / "embeddings" / "mark.safetensors"
    word.parent.mkdir()
    write_safetensors(word, {"emb_params": torch.ones(1, 64)})
    line = (LINE[0], "a cat, mark", *LINE[2:], "-m", model, "--embeddings-dir", word.parent)
    run(*line, "-o", "a.png", "--journal", "j")
    data = word.read_bytes()
    write_safetensors(word, {"emb_params": torch.zeros(1, 64)})
    said = refused(capsys, "resume", "j", "-o", "b.png")
    assert "mark.safetensors is not the file that the run was made of" in said and "-m" not in said
    word.write_bytes(data)  # another time, the same content
    run("resume", "j", "-o", "b.png")
