"""Which prompt holds at which model call: schedules, AND, the dialects, and what is told about what was not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.checkpoint.embeddings import Embedding
from avila_diffusion.errors import RequestError, WeightMismatch
from avila_diffusion.pipeline import prompts as prompts_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.prompts import Conditions, condition, read_prompts
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult
from avila_diffusion.text.conditioner import Conditioner

BASE: dict[str, Any] = {"seed": 3, "steps": 4, "sampler": "Euler", "width": 64, "height": 64}


def request(prompt: str, **named: Any) -> GenerateRequest:
    return GenerateRequest(**{**BASE, "prompt": prompt, **named}).resolved(64)


@pytest.fixture
def engine(make_engine: Any) -> ModelEngine:
    made: ModelEngine = make_engine("sd1", dtype="float32")
    return made


def read(engine: ModelEngine, prompt: str, calls: int = 10, **named: Any) -> Any:
    asked = request(prompt, **{"steps": 10, **named})
    return read_prompts(asked, engine.model.spec, calls, negative=True)


def numbered(texts: Sequence[str], negative: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A context of as many tokens as the text has characters, each the character's number."""
    for text in texts:
        yield torch.tensor([[ord(letter) for letter in text or " "]], dtype=torch.float64)[..., None], None


def shown(conditions: Conditions, call: int) -> tuple[list[str], str]:
    conds, uncond = conditions.at(call)
    assert uncond is not None
    texts = ["".join(chr(int(value)) for value in cond.context[0, :, 0]) for cond in (*conds, uncond)]
    return texts[:-1], texts[-1]


def test_the_first_segment_lasts_a_call_longer(engine: ModelEngine) -> None:
    made = condition(read(engine, "[a:b:3]", negative_prompt="[x:y:.5]"), lambda *all_: list(numbered(*all_)))
    assert [shown(made, call)[0] for call in range(10)] == [["a"]] * 4 + [["b"]] * 6
    assert [shown(made, call)[1] for call in range(10)] == ["x"] * 6 + ["y"] * 4
    assert shown(made, 11)[0] == ["a"]  # an adaptive sampler past the end, as AUTOMATIC1111 has it


def test_and_brings_its_parts_to_one_length(engine: ModelEngine) -> None:
    made = condition(
        read(engine, "abc AND [d:ef:3] :0.5", negative_prompt="x AND y"), lambda *all_: list(numbered(*all_))
    )
    assert shown(made, 0) == (["abc", " dd"], "x AND y")
    assert shown(made, 9) == (["abc", " ef"], "x AND y")
    assert [cond.weight for cond in made.at(0)[0]] == [1, 0.5]
    longer = condition(read(engine, "abc AND d"), lambda *all_: list(numbered(*all_)))
    assert shown(longer, 0)[0] == ["abc", " dd"]


def test_tags_and_comments_are_taken_out(engine: ModelEngine) -> None:
    made = read(engine, "a cat<lora:x:0.5># no\n", negative_prompt="<lora:y:1> rain")
    assert [part.texts for part in made.positive] == [["a cat"]] or made.positive[0].texts[0].strip() == "a cat"
    assert made.negative.texts == ["<lora:y:1> rain"]
    assert "read as words" in made.notes[0]


@pytest.mark.parametrize(("compat", "program"), [("comfyui", "ComfyUI"), ("diffusers", "diffusers")])
def test_other_dialects_have_no_schedule(compat: str, program: str, engine: ModelEngine) -> None:
    text = "a [b:c:3] AND d"
    made = read(engine, text, compat=compat)
    assert [part.texts for part in made.positive] == [[text]]
    assert made.notes == (
        f"{program} knows no [b:c:3]; it was read as words",
        f"{program} knows no AND; it was read as words",
    )


def encoded(engine: ModelEngine, *texts: str, negative: bool = False) -> list[Tensor]:
    one = Conditioner(engine.model.spec, engine.model.text, torch.device("cpu"), torch.float32, emphasis="Original")
    with torch.no_grad():
        return [found.context for found in one.encode_all(texts, width=64, height=64, negative=negative)]


def contexts(engine: ModelEngine, asked: GenerateRequest, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the UNet was given in each of its runs."""
    seen: list[Tensor] = []
    forward = type(engine.model.unet).forward

    def keep(self: Any, *inputs: Any, **named: Any) -> Tensor:
        seen.append(named["context"].clone())
        answer: Tensor = forward(self, *inputs, **named)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model.unet), "forward", keep)
        list(engine.generate(asked))
    return seen


@pytest.mark.parametrize(("sampler", "when", "calls"), [("Euler", 2, 4), ("Heun", 4, 7)])
def test_a_run_counts_its_calls(
    sampler: str, when: int, calls: int, engine: ModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At half of the steps of Euler, of the calls of a second-order sampler."""
    asked = request("[a (red:1.4) cat:a dog:0.5]", negative_prompt="rain", sampler=sampler, schedule="Karras")
    seen = contexts(engine, asked, monkeypatch)
    first, second = encoded(engine, "a (red:1.4) cat", "a dog")
    (rain,) = encoded(engine, "rain")
    assert len(seen) == calls
    for number, context in enumerate(seen):
        expected = torch.cat([first if number <= when else second, rain])
        torch.testing.assert_close(context, expected, rtol=0, atol=1e-5)


def test_and_in_a_run(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "bird " * 80
    seen = contexts(engine, request(f"a cat AND {long}:0.5", steps=1, negative_prompt="rain"), monkeypatch)
    (cat,), (birds,), (rain,) = encoded(engine, "a cat"), encoded(engine, f" {long.strip()}"), encoded(engine, "rain")
    padded = torch.cat([cat, cat[:, -1:].expand(-1, 77, -1)], dim=1)
    assert len(seen) == 2  # the two parts, and the negative prompt of another length
    torch.testing.assert_close(seen[0], torch.cat([padded, birds]), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen[1], rain, rtol=0, atol=1e-5)


def test_weights_of_and_guide(engine: ModelEngine, latents_of: Any) -> None:
    """The latent of a run with AND is the sum over guidance worked by hand."""
    asked = request("a cat AND a dog :-0.5", steps=1, negative_prompt="rain", guidance_scale=3)
    (latent,) = latents_of(engine, asked)
    one = [latents_of(engine, replace(asked, prompt=text))[0] for text in ("a cat", "a dog")]
    (base,) = latents_of(engine, replace(asked, prompt="rain", guidance_scale=1))
    expected = base + (one[0] - base) - 0.5 * (one[1] - base)
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_an_embedding_is_used_and_told(engine: ModelEngine, tmp_path: Path, finish: Any, latents_of: Any) -> None:
    path = tmp_path / "sks.pt"
    torch.save({"string_to_param": {"*": torch.ones(2, 64)}}, path)
    with_word = replace(engine, embeddings={"sks": path, "broken": tmp_path / "nowhere.pt"})
    asked = request("a sks", negative_prompt="rain")
    result = finish(with_word.generate(asked))
    short = Embedding("sks", {}, path).hash[:12]
    assert f'TI hashes: "sks: {short}"' in result.images[0].infotext
    assert not torch.equal(latents_of(with_word, asked)[0], latents_of(engine, asked)[0])
    torch.save({"string_to_param": {"*": torch.ones(2, 96)}}, path)
    with pytest.raises(WeightMismatch, match="of another family"):
        replace(engine, embeddings={"sks": path}).accept(asked)


def test_what_was_not_used_is_told(make_engine: Any, finish: Any) -> None:
    asked = request("a cat " * 50, guidance_scale=1, negative_prompt="rain", clip_skip=2, steps=1, compat="diffusers")
    notes = finish(make_engine("sd2").generate(asked)).notes
    assert [note.split(";")[0] for note in notes] == [
        "the negative prompt was not used, because guidance is off",
        "clip_skip 2 was not used",
        "diffusers reads 75 tokens",
    ]
    assert finish(make_engine("sd1").generate(request("a cat", steps=1))).notes == ()


def test_a_wrong_emphasis_is_refused() -> None:
    with pytest.raises(RequestError, match="emphasis"):
        request("a", emphasis="loud")


def test_mistakes_are_seen(engine: ModelEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "segment_at", lambda segments, call: next(s for s in segments if call < s.end))
    with pytest.raises((AssertionError, StopIteration)):
        test_the_first_segment_lasts_a_call_longer(engine)
    monkeypatch.undo()
    monkeypatch.setattr(prompts_module, "_lengthened", lambda cond, length: cond)
    with pytest.raises(AssertionError):
        test_and_brings_its_parts_to_one_length(engine)


def drawn(engine: ModelEngine, asked: GenerateRequest) -> GenerateResult:
    *_, result = engine.generate(asked)
    assert isinstance(result, GenerateResult)
    return result


@pytest.mark.parametrize(("prompt", "scale"), [("a cat AND a cat", 2.0), ("a cat :1.5", 1.5)])
def test_parts_whose_weights_are_not_one_need_the_negative_prompt_at_scale_1(
    prompt: str, scale: float, engine: ModelEngine
) -> None:
    """u + 1 (c - u) + 1 (c - u) is what scale 2 gives."""
    parts, whole, other = (
        drawn(engine, request(text, negative_prompt=negative, guidance_scale=guidance))
        for text, negative, guidance in ((prompt, "rain", 1.0), ("a cat", "rain", scale), ("a cat", "", scale))
    )
    assert abs(parts.to_numpy().astype(int) - whole.to_numpy()).max() <= 1
    assert abs(parts.to_numpy().astype(int) - other.to_numpy()).max() > 1
    assert not any("not used" in note for note in parts.notes)


def test_a_prompt_that_ends_in_a_weight_is_told(engine: ModelEngine) -> None:
    (note,) = read(engine, "a clock at 10:30").notes
    assert "ends in :30" in note
    assert read(engine, "a clock at 10:30,").notes == ()
    assert read(engine, "a cat AND a dog :2").notes == ()
    assert read(engine, "a clock at 10:30", compat="comfyui").notes == ()
