"""LoRAs named in the prompt: found by name, laid on the model for that run, and off it for the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from avila_diffusion.api import AvilaDiffusion
from avila_diffusion.checkpoint.lora.targets import name_targets
from avila_diffusion.checkpoint.safetensors import TensorFile, write_safetensors
from avila_diffusion.errors import ModelNotFound, RequestError, Unsupported
from avila_diffusion.infotext import read
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult

TinyCheckpoint = Callable[..., Path]


@pytest.fixture
def diffusion(tiny_checkpoint: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AvilaDiffusion:
    """A tiny model, and two LoRAs beside it, "ink" and "red", where names are looked up."""
    engine = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), steps=2, width=64, height=64, seed=3)
    folder = tmp_path / "models" / "Lora"
    folder.mkdir(parents=True)
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path / "models"))
    for number, name in enumerate(("ink", "red")):
        write_lora(engine, folder / f"{name}.safetensors", number)
    return engine


def write_lora(diffusion: AvilaDiffusion, path: Path, seed: int) -> None:
    inner = diffusion._engine
    assert isinstance(inner, ModelEngine)
    generator = torch.Generator().manual_seed(seed)
    state, seen = {}, set()
    for name, target in name_targets(inner.model).items():
        if len(target.shape) != 2 or id(target.layer) in seen:  # a layer may have several names
            continue
        seen.add(id(target.layer))
        state[f"{name}.lora_down.weight"] = torch.randn(2, target.shape[1], generator=generator) * 0.3
        state[f"{name}.lora_up.weight"] = torch.randn(target.shape[0], 2, generator=generator) * 0.3
    write_safetensors(path, state, {"ss_base_model_version": "sd_v1"})


def bytes_of(result: GenerateResult) -> bytes:
    return result.to_numpy().tobytes()


def test_a_tag_is_as_good_as_the_option(diffusion: AvilaDiffusion, tmp_path: Path, tiny_checkpoint: Any) -> None:
    tagged = diffusion.text_to_image("a cat <lora:ink:0.8>")
    options: Any = {"lora": (tmp_path / "models/Lora/ink.safetensors", 0.8), "steps": 2, "width": 64, "height": 64}
    given = AvilaDiffusion.with_model(tiny_checkpoint("sd1"), **options).text_to_image("a cat", seed=3)
    assert bytes_of(tagged) == bytes_of(given)
    assert bytes_of(tagged) != bytes_of(diffusion.text_to_image("a cat"))
    fields = read(tagged[0].infotext or "")
    assert fields.prompt == "a cat <lora:ink:0.8>" == read(given[0].infotext or "").prompt
    assert fields.fields["Lora hashes"] == read(given[0].infotext or "").fields["Lora hashes"]


def test_the_next_prompt_is_free_of_them(diffusion: AvilaDiffusion) -> None:
    plain = bytes_of(diffusion.text_to_image("a cat"))
    seen = set()
    for prompt in (
        "<lora:ink:1> a cat",
        "a cat<lora:red:0.5>",
        "a cat <lora:ink:1><lora:red:0.5>",
        "a <lyco:ink:0.5:0> cat",
    ):
        seen.add(bytes_of(diffusion.text_to_image(prompt)))
        assert bytes_of(diffusion.text_to_image("a cat")) == plain
    assert len(seen | {plain}) == 5


def test_names_are_looked_up_where_it_is_said(
    diffusion: AvilaDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a resumed run too."""
    from avila_diffusion.pipeline.journal import Journal

    wanted = bytes_of(diffusion.text_to_image("a cat <lora:ink:1>"))
    monkeypatch.setenv("AVILA_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFound):
        diffusion.text_to_image("a cat <lora:red:1>")
    diffusion.look_in(tmp_path / "models")
    path = tmp_path / "run.journal"
    assert bytes_of(diffusion.text_to_image("a cat <lora:ink:1>", journal=path)) == wanted
    with closing(Journal.read(path)) as journal:
        again = AvilaDiffusion.from_journal(journal)
    assert bytes_of(again.text_to_image("a cat <lora:ink:1>", None, 64, 64, steps=2, seed=3)) == wanted


def test_separate_weights(diffusion: AvilaDiffusion) -> None:
    pictures = {
        bytes_of(diffusion.text_to_image(f"a cat <lora:ink:{weights}>"))
        for weights in ("1", "1:0", "0:1", "te=1:unet=0.5")
    }
    assert len(pictures) == 4
    assert bytes_of(diffusion.text_to_image("a cat <lora:ink:0>")) == bytes_of(diffusion.text_to_image("a cat"))


def test_two_runs_in_turn_do_not_disturb_each_other(diffusion: AvilaDiffusion) -> None:
    prompts = ("a cat <lora:ink:1>", "a cat", "a cat <lora:red:1>")
    alone = [bytes_of(diffusion.text_to_image(prompt)) for prompt in prompts]
    base = diffusion.request("", seed=3)
    runs = [iter(diffusion.generate(replace(base, prompt=prompt))) for prompt in prompts]
    ended: dict[int, bytes] = {}
    while len(ended) < len(runs):
        for number, run in enumerate(runs):
            event = next(run, None)
            if isinstance(event, GenerateResult):
                ended[number] = bytes_of(event)
    assert [ended[number] for number in range(3)] == alone


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("a cat <hypernet:style:1>", Unsupported, "hypernetworks are not supported"),
        ("a cat <foo:style:1>", Unsupported, "kind 'foo'"),
        ("a cat <lora:nothing:1>", ModelNotFound, "nothing"),
        ("a cat <lora:ink:lots>", RequestError, "weight 'lots'"),
        ("a cat <lora:ink:1:1:1:1>", RequestError, "arguments without a meaning"),
    ],
)
def test_what_cannot_be_applied_is_refused_before_any_work(
    diffusion: AvilaDiffusion, prompt: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        diffusion.generate(GenerateRequest(prompt=prompt, width=64, height=64))
    assert "\n" not in str(caught.value)
    assert bytes_of(diffusion.text_to_image("a cat"))


def test_a_journal_knows_the_files_that_the_prompt_names(diffusion: AvilaDiffusion, tmp_path: Path) -> None:
    from avila_diffusion.pipeline.journal import Journal

    path = tmp_path / "run.journal"
    made = diffusion.text_to_image("a cat <lora:ink:1>", journal=path)
    with closing(Journal.read(path)) as journal:
        files = [Path(file["path"]).name for file in journal.header["files"] if file["lora"]]
        again = AvilaDiffusion.from_journal(journal).text_to_image("a cat <lora:ink:1>", None, 64, 64, steps=2, seed=3)
    assert files == ["ink.safetensors"]
    assert bytes_of(again) == bytes_of(made)


def test_vectors_in_the_file_of_a_tag_are_words_of_its_prompt(diffusion: AvilaDiffusion, tmp_path: Path) -> None:
    inner = diffusion._engine
    assert isinstance(inner, ModelEngine)
    path = tmp_path / "models/Lora/ink.safetensors"
    with TensorFile(path) as file:
        state = {key: file.tensor(key).clone() for key in file.names}
    vectors = torch.randn(2, inner.model.spec.text[0].config.width, generator=torch.Generator().manual_seed(9))
    write_safetensors(
        path, state | {"bundle_emb.inkword.string_to_param.*": vectors}, {"ss_base_model_version": "sd_v1"}
    )
    write_safetensors(tmp_path / "models/Lora/bare.safetensors", state, {"ss_base_model_version": "sd_v1"})
    named = diffusion.text_to_image("a inkword cat <lora:ink:1>")
    assert bytes_of(named) != bytes_of(diffusion.text_to_image("a inkword cat <lora:bare:1>"))
    assert "inkword: " in read(named[0].infotext or "").fields["TI hashes"]
    assert bytes_of(diffusion.text_to_image("a cat <lora:ink:1>")) == bytes_of(
        diffusion.text_to_image("a cat <lora:bare:1>")
    )
    assert "TI hashes" not in read(diffusion.text_to_image("a inkword cat")[0].infotext or "").fields


def test_a_tag_in_a_comment_is_none(diffusion: AvilaDiffusion) -> None:
    commented = diffusion.text_to_image("a cat # <lora:ink:0.8> <lora:nowhere:1>")
    assert bytes_of(commented) == bytes_of(diffusion.text_to_image("a cat\n"))
    assert bytes_of(diffusion.text_to_image("a cat #\n<lora:ink:0.8>")) != bytes_of(commented)
