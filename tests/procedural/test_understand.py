"""The parser: both languages, accents and case, plurals, expressions, AUTOMATIC1111's marks, what is ruled out."""

from __future__ import annotations

import pytest

from avila_diffusion.errors import RequestError
from avila_diffusion.procedural.understand import INDEX, KINDS, describe, fold, read, tokens
from avila_diffusion.procedural.vocabulary import COLOURS_ENGLISH, COLOURS_PORTUGUESE, IGNORED, LOCAL


@pytest.mark.parametrize(
    ("prompt", "kind", "time", "style"),
    [
        ("a beautiful sunset over mountains", "mountains", "sunset", "photo"),
        ("pôr do sol sobre montanhas, aquarela", "mountains", "sunset", "watercolour"),
        ("PÔR DO SOL SOBRE MONTANHAS, AQUARELA", "mountains", "sunset", "watercolour"),
        ("city at night in the rain", "city", "night", "photo"),
        ("cidade à noite na chuva", "city", "night", "photo"),
        ("nascer do sol no lago, óleo sobre tela", "lake", "sunrise", "oil"),
        ("misty forests at dawn, pixel art", "forest", "sunrise", "pixel art"),
        ("floresta com neblina ao amanhecer, pixelada", "forest", "sunrise", "photo"),
        ("aurora boreal sobre montanhas nevadas", "mountains", "night", "photo"),
        ("northern lights", "mountains lake forest", "night", "photo"),
        ("galaxy, black and white", "space", "night", "monochrome"),
        ("galáxia em preto e branco", "space", "night", "monochrome"),
        ("dunes, line drawing", "desert", "", "line art"),
        ("cânion, cartaz minimalista", "canyon", "", "poster"),
        ("praia ensolarada com coqueiros", "beach", "day", "photo"),
        ("fundo do mar", "underwater", "day", "photo"),
        ("synthwave city", "city", "", "neon"),
        ("ilhas ao meio-dia", "island", "day", "photo"),
    ],
)
def test_a_prompt_is_understood(prompt: str, kind: str, time: str, style: str) -> None:
    scene = describe(prompt, "", 5)
    assert scene.kind in kind.split()
    assert time in ("", scene.time)
    assert scene.style == style


def test_scenes_combine() -> None:
    scene = describe("sunset over mountains with a lake and birds, fog", "", 1)
    assert scene.kind == "lake"
    assert scene.has("mountains") and scene.has("birds") and scene.has("fog")
    assert scene.unused == ()


def test_whole_words_only() -> None:
    assert describe("seam staring cityfied", "", 1).used == ()


@pytest.mark.parametrize(
    "word", ["nuvens", "montanhas", "flores", "canions", "skies forests", "árvores", "vulcões", "beaches"]
)
def test_plurals(word: str) -> None:
    assert read(word).wished


@pytest.mark.parametrize(
    "prompt",
    [
        "(sunset:1.3) over [mountains]",
        "((sunset)) over mountains <lora:add_detail:0.8>",
        "sunset, BREAK mountains",
        "[sunset:0.5] mountains",
    ],
)
def test_weights_and_tags_do_not_confuse(prompt: str) -> None:
    scene = describe(prompt, "", 1)
    assert (scene.kind, scene.time, scene.unused) == ("mountains", "sunset", ())


def test_weight_marks_leave_no_words() -> None:
    assert tokens("(red:1.3), [lake:.5] <lora:moon:1>") == ["red", "lake"]


def test_negative_prompt() -> None:
    scene = describe("sunset over mountains with clouds and a lake", "clouds, people, (blue:1.2), sunset, mountains", 1)
    assert not scene.has("clouds") and not scene.has("mountains")
    assert scene.kind == "lake"
    assert scene.time != "sunset"
    assert scene.avoided == ("blue",)
    assert {"clouds", "mountains"} <= set(scene.without)


@pytest.mark.parametrize("prompt", ["beach, no clouds", "beach without clouds", "praia sem nuvens"])
def test_negations_in_the_prompt(prompt: str) -> None:
    scene = describe(prompt, "", 1)
    assert scene.without == ("clouds",) and not scene.has("clouds")


def test_portuguese_no_is_not_a_negation() -> None:
    assert describe("barco no lago no inverno", "", 1).without == ()


def test_a_colour_beside_a_thing_colours_the_thing() -> None:
    english, portuguese = describe("red flowers in a field", "", 1), describe("campo com flores vermelhas", "", 1)
    assert english.tint("flowers") == portuguese.tint("flowers") == "red"
    assert english.colours == portuguese.colours == ()
    assert describe("purple sunset", "", 1).colours == ("purple",)
    assert describe("céu roxo", "", 1).colours == ("purple",)
    assert describe("a field of sunflowers", "", 1).tint("flowers") == "yellow"


def test_what_was_not_understood_is_told() -> None:
    scene = describe("masterpiece, best quality, portrait of a cat on a mountain", "", 1)
    assert scene.unused == ("portrait", "cat")
    assert scene.used == ("mountain",)


def test_unknown_and_empty_prompts_give_a_scene_by_words_and_seed() -> None:
    assert describe("xyzzy plugh", "", 4) == describe("xyzzy  plugh!", "", 4)
    kinds = {describe(word, "", 4).kind for word in ("cat", "dog", "robot", "spoon", "queen", "train")}
    assert len(kinds) > 1
    assert {describe("", "", seed).kind for seed in range(20)} <= set(KINDS)
    assert len({describe("", "", seed).kind for seed in range(20)}) > 3


def test_caption_names_the_scene() -> None:
    caption = describe("purple sunset over mountains with fog, oil painting", "", 7).caption
    assert all(word in caption for word in ("mountains", "sunset", "fog", "purple", "oil", "seed 7"))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_a_bad_seed_is_refused(seed: object) -> None:
    with pytest.raises(RequestError, match="seed"):
        describe("sea", "", seed)  # type: ignore[arg-type]


def test_text_that_is_not_text_is_refused() -> None:
    with pytest.raises(RequestError, match="negative_prompt must be text"):
        describe("sea", 3, 1)  # type: ignore[arg-type]


def test_the_vocabulary_is_folded_and_reachable() -> None:
    for expression, (table, meaning) in INDEX.items():
        joined = " ".join(expression)
        assert joined == fold(joined) == joined.strip()
        found = [match.meaning for match in read(joined).wished]
        assert found == [meaning], (table, joined)
        assert len(expression) > 1 or expression[0] not in IGNORED
    assert set(COLOURS_PORTUGUESE) <= set(COLOURS_ENGLISH)
    assert set(LOCAL.values()) == {"flowers", "water", "foliage", "ground"}


def test_long_prompts_are_read() -> None:
    assert describe("word " * 20_000 + "lake", "", 1).kind == "lake"
