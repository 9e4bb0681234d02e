"""`avila generate`: what is asked of the engine, and what is left on the disk."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from avila_diffusion.cli import main
from avila_diffusion.errors import NotFinite

if TYPE_CHECKING:
    from .conftest import FlatEngine


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_prompt_becomes_a_numbered_file(
    engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a cat", "-s", "7"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(Path("outputs") / "00001-7.png")]
    assert engine.model == Path("found/checkpoint/bundled")
    assert "the small bundled one; -m FILE takes a checkpoint" in said.err.splitlines()[0]
    assert (tmp_path / "outputs" / "00001-7.png").read_text(encoding="utf-8") == "a cat 7"


def test_procedural_pictures_need_no_model(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a cat", "-s", "7", "--procedural"]) == 0
    assert engine.model is None
    assert "model" not in capsys.readouterr().err


def test_the_whole_report_is_shown_for_the_bundled_model_too(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "a cat"]) == 0
    assert "a flat model" not in capsys.readouterr().err
    assert main(["generate", "a cat", "-v"]) == 0
    assert "with nothing in it" in capsys.readouterr().err


def test_options_of_the_machine_apply_to_the_bundled_model_too(engine: FlatEngine) -> None:
    assert main(["generate", "a cat", "--device", "cpu", "--dtype", "bfloat16", "-t", "3", "--no-mmap"]) == 0
    told = {name: engine.options[name] for name in ("device", "dtype", "threads", "mmap")}
    assert told == {"device": "cpu", "dtype": "bfloat16", "threads": 3, "mmap": False}


def test_what_is_given_goes_before_what_the_model_recommends(engine: FlatEngine) -> None:
    engine.defaults = {"steps": 12, "guidance_scale": 4.0, "sampler": "Euler"}
    assert main(["generate", "a cat", "--cfg", "7", "-n", "dog"]) == 0
    (request,) = engine.requests
    assert (request.steps, request.guidance_scale, request.sampler) == (12, 7.0, "Euler")
    assert (request.prompt, request.negative_prompt) == ("a cat", "dog")


def test_numbers_go_on_and_nothing_is_replaced(engine: FlatEngine, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "00041-7.png").write_text("mine", encoding="utf-8")
    (tmp_path / "outputs" / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["generate", "a cat", "-s", "7", "-b", "2", "--count", "2"]) == 0
    wanted = ["00041-7.png", "00042-7.png", "00043-8.png", "00044-9.png", "00045-10.png", "notes.txt"]
    assert files(tmp_path / "outputs") == wanted
    assert (tmp_path / "outputs" / "00041-7.png").read_text(encoding="utf-8") == "mine"


def test_a_number_that_another_run_has_just_taken_is_left_alone(
    engine: FlatEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "00001-7.png").write_text("theirs", encoding="utf-8")
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(()))  # the listing was made before theirs was written
    assert main(["generate", "a cat", "-s", "7"]) == 0
    assert (tmp_path / "outputs" / "00001-7.png").read_text(encoding="utf-8") == "theirs"
    assert (tmp_path / "outputs" / "00002-7.png").read_text(encoding="utf-8") == "a cat 7"


def test_every_option_reaches_the_request(engine: FlatEngine) -> None:
    line = "generate -p cat -n dog -W 64 -H 128 --steps 3 --sampler euler --schedule karras --cfg 4.5 -s -1"
    line += " -b 2 --count 1 --clip-skip 2 --rng cpu --eta 0.5 -o out/ -q"
    assert main(line.split()) == 0
    (request,) = engine.requests
    assert (request.prompt, request.negative_prompt, request.width, request.height) == ("cat", "dog", 64, 128)
    assert (request.steps, request.sampler, request.schedule, request.guidance_scale) == (3, "euler", "karras", 4.5)
    assert (request.seed, request.batch, request.clip_skip, request.rng, request.eta) == (-1, 2, 2, "cpu", 0.5)


def test_defaults_are_the_requests_own(engine: FlatEngine) -> None:
    from avila_diffusion.request import GenerateRequest

    assert main(["generate", "cat"]) == 0
    assert engine.requests == [GenerateRequest(prompt="cat")]


@pytest.mark.parametrize(
    ("alias", "field", "value"),
    [
        ("--sampling-method", "sampler", "Euler a"),
        ("--scheduler", "schedule", "Karras"),
        ("--cfg-scale", "guidance_scale", 3.0),
        ("--guidance-scale", "guidance_scale", 3.0),
    ],
)
def test_other_tools_words_are_understood(engine: FlatEngine, alias: str, field: str, value: object) -> None:
    assert main(["generate", "cat", alias, str(value)]) == 0
    assert getattr(engine.requests[0], field) == value


def test_the_model_and_its_options_reach_the_engine(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    line = "generate cat -m dream --vae v --text-encoder a --text-encoder b --prediction v --models-dir m"
    line += " --lora style --lora detail:-.5 --embeddings-dir words"
    line += " --device cpu --dtype bfloat16 -t 3 --no-mmap --preview-dir seen --preview-decoder tiny"
    assert main(line.split()) == 0
    assert engine.model == Path("m/checkpoint/dream")
    assert engine.models == "m"
    assert engine.options == {
        "vae": Path("m/vae/v"),
        "text_encoder": [Path("m/text_encoder/a"), Path("m/text_encoder/b")],
        "lora": [(Path("m/lora/style"), 1.0, 1.0), (Path("m/lora/detail"), -0.5, -0.5)],
        "prediction": "v",
        "embeddings": [Path("words")],
        "device": "cpu",
        "dtype": "bfloat16",
        "threads": 3,
        "mmap": False,
        "lenient": False,
        "memory": "auto",
        "max_memory": None,
        "refiner": None,
        "preview_decoder": Path("m/taesd/tiny"),
    }
    said = capsys.readouterr().err
    assert "a flat model" in said
    assert "with nothing in it" not in said
    assert "procedural" not in said


def test_plain_model_options_are_left_to_the_engine(engine: FlatEngine) -> None:
    assert main(["generate", "cat", "-m", "dream", "-v"]) == 0
    assert engine.options == {
        "vae": None,
        "text_encoder": None,
        "lora": None,
        "prediction": None,
        "embeddings": None,
        "device": "auto",
        "dtype": "auto",
        "threads": None,
        "mmap": True,
        "lenient": False,
        "memory": "auto",
        "max_memory": None,
        "refiner": None,
        "preview_decoder": None,
    }


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("style", "style", 1.0),
        ("style:0.8", "style", 0.8),
        ("style:-1e-1", "style", -0.1),
        ("style: 2 ", "style", 2.0),
        (r"d:\loras\x.safetensors", r"d:\loras\x.safetensors", 1.0),
        (r"d:\loras\x.safetensors:0.8", r"d:\loras\x.safetensors", 0.8),
        ("a:b", "a:b", 1.0),
        ("a:nan", "a:nan", 1.0),
        ("a:1_0", "a:1_0", 1.0),
        (":0.5", ":0.5", 1.0),
        ("a:b:0.7", "a:b", 0.7),
        ("a:0.7:0.7", "a", 0.7),
    ],
)
def test_a_lora_and_its_weight(engine: FlatEngine, text: str, name: str, weight: float) -> None:
    assert main(["generate", "cat", "-m", "dream", "--lora", text]) == 0
    assert engine.options["lora"] == [(Path("found") / "lora" / name, weight, weight)]
    assert main(["generate", "cat", "--lora", text]) == 0  # of the bundled model
    assert engine.options["lora"] == [(Path("found") / "lora" / name, weight, weight)]


def test_a_named_file_is_written_and_replaced(
    engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("old", encoding="utf-8")
    assert main(["generate", "cat", "-s", "1", "-o", "a.png"]) == 0
    assert capsys.readouterr().out == "a.png\n"
    assert (tmp_path / "a.png").read_text(encoding="utf-8") == "cat 1"
    assert files(tmp_path) == ["a.png"]


def test_a_name_without_suffix_is_a_png(engine: FlatEngine, tmp_path: Path) -> None:
    assert main(["generate", "cat", "-o", str(tmp_path / "deep" / "er" / "v1.5")]) == 0
    assert files(tmp_path) == ["deep/er/v1.5.png"]


def test_several_pictures_get_numbers(engine: FlatEngine, tmp_path: Path) -> None:
    assert main(["generate", "cat", "-s", "5", "-b", "2", "--count", "2", "-o", "a.png"]) == 0
    assert files(tmp_path) == ["a-1.png", "a-2.png", "a-3.png", "a-4.png"]
    assert (tmp_path / "a-4.png").read_text(encoding="utf-8") == "cat 8"


@pytest.mark.parametrize("output", ["new/", "there"])
def test_a_folder_gets_numbered_files(engine: FlatEngine, tmp_path: Path, output: str) -> None:
    (tmp_path / "there").mkdir()
    assert main(["generate", "cat", "-s", "5", "-o", output]) == 0
    assert files(tmp_path) == [f"{output.rstrip('/')}/00001-5.png"]


def test_a_drawn_seed_is_kept_for_the_batches_that_follow(engine: FlatEngine) -> None:
    assert main(["generate", "cat", "--count", "3", "-b", "2"]) == 0
    first, second, third = (request.seed for request in engine.requests)
    assert first is None
    assert second is not None
    assert third == second + 2
    assert all(request.count == 1 for request in engine.requests)


def test_json_says_everything(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    line = "generate cat -m dream -s 9 -b 2 -W 64 -H 32 --steps 4 --sampler euler --json -o a.png"
    assert main(line.split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.pop("seconds") >= 0
    assert said == {
        "paths": ["a-1.png", "a-2.png"],
        "seed": 9,
        "seeds": [9, 10],
        "size": [64, 32],
        "drawn_at": None,
        "steps": 4,
        "sampler": "Euler",
        "schedule": "Automatic",
        "model": str(Path("found/checkpoint/dream")),
        "infotext": ["Seed: 9", "Seed: 10"],
        "notes": [],
        "report": {"family": "flat"},
    }


def test_quiet_is_silent(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "cat", "-q", "-o", "a.png"]) == 0
    assert capsys.readouterr() == ("a.png\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "a prompt is needed"),
        (["generate", "a", "-p", "b"], "given twice"),
        (["generate", "a", "--steps", "0"], "steps is 0"),
        (["generate", "a", "--steps", "many"], "invalid int value: 'many'"),
        (["generate", "a", "--sampler", "nonsense"], "nonsense"),
        (["generate", "a", "--nonsense"], "--nonsense"),
        (["generate", "a", "--vae", "x", "--procedural"], "--vae only means something with a model"),
        (["generate", "a", "--step", "3"], "--step"),
        (["generate", "a", "-m", "x", "--procedural"], "--procedural"),
        (["generate", "a", "--vae", "x"], "--vae only means something with a checkpoint"),
        (["generate", "a", "--lora", "x", "--procedural"], "--lora only means something with a model"),
        (
            ["generate", "a", "--procedural", "--device", "cpu", "--dtype", "auto"],
            "--device, --dtype only mean something",
        ),
        (["generate", "a", "--procedural", "-t", "4"], "--threads only means something with a model"),
        (["generate", "a", "--procedural", "--no-mmap"], "--no-mmap only means something with a model"),
        (["generate", "a", "--procedural", "--lenient"], "--lenient only means something with a model"),
        (["generate", "a", "--procedural", "--models-dir", "d"], "--models-dir only means something with a model"),
        (["generate", "a", "--sampler", "Karras"], "is a schedule, not a sampler; give it as schedule (--schedule"),
        (["generate", "a", "--scheduler", "euler"], "is a sampler, not a schedule; give it as sampler (--sampler"),
        (["generate", "a", "-o", os.devnull], "is a device, not a file"),
        (["generate", "\udcff"], "the text is not UTF-8"),
        (["generate", "a", "-n", "\udcff"], "the text is not UTF-8"),
        (["prompt", "\udcff"], "the text is not UTF-8"),
        (["generate", "a", "-t", "0"], "threads is 0"),
        (["generate", "a", "-o", "a.gif"], "a.png"),
        (["generate", "a", "-o", ""], "empty name"),
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_wrong_call_is_one_line(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("avila: error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert engine.requests == []


@pytest.mark.parametrize("output", ["file/a.png", "file/", "folder.png", "x" * 300 + ".png"])
def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder-1.png").mkdir()
    assert main(["generate", "cat", "-b", "2", "-o", output]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("avila: error: ")
    assert said.err.count("\n") == 1
    assert engine.requests == []
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_refused(engine: FlatEngine, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["generate", "cat", "-o", "locked/a.png"]) == 1
    assert engine.requests == []


def test_ctrl_c_leaves_no_file(engine: FlatEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine.fail = KeyboardInterrupt()
    assert main(["generate", "cat"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "avila: error: stopped; nothing unfinished was left behind"
    assert files(tmp_path) == []


def test_a_name_too_long_is_refused_before_the_run(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "cat", "-o", "x" * 300]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert engine.requests == []


def test_the_case_of_the_suffix_is_kept(engine: FlatEngine, tmp_path: Path) -> None:
    assert main(["generate", "cat", "-b", "2", "-o", "A.PNG"]) == 0
    assert files(tmp_path) == ["A-1.PNG", "A-2.PNG"]


def test_a_reader_that_leaves_does_not_stop_the_pictures(
    engine: FlatEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["generate", "cat", "-s", "1", "--count", "2"]) == 0
    assert files(tmp_path) == ["outputs/00001-1.png", "outputs/00002-2.png"]


def test_ctrl_c_keeps_the_pictures_that_are_done(engine: FlatEngine, tmp_path: Path) -> None:
    engine.fail, engine.fail_run = KeyboardInterrupt(), 2
    assert main(["generate", "cat", "-s", "1", "--count", "3"]) == 130
    assert files(tmp_path) == ["outputs/00001-1.png", "outputs/00002-2.png"]


def test_a_picture_that_cannot_be_written_leaves_no_placeholder(
    engine: FlatEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    assert main(["generate", "cat"]) == 1
    assert files(tmp_path) == []


def test_an_error_of_the_engine_is_one_line(engine: FlatEngine, capsys: pytest.CaptureFixture[str]) -> None:
    engine.fail = NotFinite("the UNet made NaN at step 2;\n use --dtype float32")
    assert main(["generate", "cat", "-q"]) == 1
    assert capsys.readouterr().err == "avila: error: the UNet made NaN at step 2; use --dtype float32\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_too_little_memory_is_named(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    engine.fail = error
    assert main(["generate", "cat", "-q"]) == 1
    assert "not enough memory" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows hands over UTF-16, whatever the locale")
def test_a_prompt_typed_where_the_locale_is_ascii(
    engine: FlatEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python decodes the arguments by the locale, and keeps what does not fit in lone surrogates."""
    pieces = "maçã 🍎".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert main(["generate", pieces, "-n", pieces, "-q"]) == 0
    assert (engine.requests[0].prompt, engine.requests[0].negative_prompt) == ("maçã 🍎", "maçã 🍎")
