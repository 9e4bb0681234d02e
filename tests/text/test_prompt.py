"""AND, comments, network tags and the order in which they are read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avila_diffusion.errors import RequestError
from avila_diffusion.text.prompt import (
    AndPart,
    LoraWeights,
    NetworkTag,
    lora_weights,
    read_prompt,
    split_and,
    strip_comments,
    take_networks,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a AND b", [("a", 1.0), (" b", 1.0)]),
        ("a:0.5 AND b : -1.5 ", [("a", 0.5), (" b", -1.5)]),
        ("a:1.", [("a", 1.0)]),
        ("a:.5", [("a", 0.5)]),
        ("a:+2", [("a", 2.0)]),
        ("a:2e1", [("a:2e1", 1.0)]),
        ("a:b:2", [("a:b", 2.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        ("[a:b:5]", [("[a:b:5]", 1.0)]),
        ("SAND BRAND and And", [("SAND BRAND and And", 1.0)]),
        ("ANDAND AND", [("ANDAND", 1.0), ("", 1.0)]),
        ("a\nAND\nb\n:2", [("a", 1.0), ("\nb", 2.0)]),
        ("a\\AND", [("a\\", 1.0), ("", 1.0)]),
        (":3", [("", 3.0)]),
    ],
)
def test_parts(text: str, expected: list[tuple[str, float]]) -> None:
    assert split_and(text) == tuple(AndPart(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("text", "left", "tags"),
    [
        ("a <lora:ink:0.8> b", "a  b", ["<lora:ink:0.8>"]),
        ("<lyco:x:te=0.5:unet=1:dyn=4>", "", ["<lyco:x:te=0.5:unet=1:dyn=4>"]),
        ("[<lora:x:1>:b:5]", "[:b:5]", ["<lora:x:1>"]),
        ("<lora:<lora:x:1>", "", ["<lora:<lora:x:1>"]),
        ("<a:>b>", "<a:>b>", []),
        ("<a b:c> <:c> <a> <lora:x", "<a b:c> <:c> <a> <lora:x", []),
        ("<hypernet:x:1><foo:bar>", "", ["<hypernet:x:1>", "<foo:bar>"]),
        ("<lora:a\nb:1>", "", ["<lora:a\nb:1>"]),
    ],
)
def test_tags(text: str, left: str, tags: list[str]) -> None:
    found, networks = take_networks(text)
    assert (found, [str(tag) for tag in networks]) == (left, tags)


def test_arguments_of_a_tag() -> None:
    _, (tag,) = take_networks("<lora:ink:0.8:unet=0.5:a=b=c:4>")
    assert tag == NetworkTag("lora", "ink", ("0.8", "a=b=c", "4"), (("unet", "0.5"),))
    assert tag.is_lora
    assert not NetworkTag("hypernet", "x").is_lora


@given(st.text(alphabet="<>:ab=\n1", max_size=24))
def test_tags_as_a_regular_expression_finds_them(text: str) -> None:
    left, tags = take_networks(text)
    pattern = r"<\w+:[^>]+>"
    assert left == re.sub(pattern, "", text)
    assert len(tags) == len(re.findall(pattern, text))


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("<lora:x>", LoraWeights(1.0, 1.0)),
        ("<lora:x:0.8>", LoraWeights(0.8, 0.8)),
        ("<lora:x:0.8:0.2>", LoraWeights(0.8, 0.2)),
        ("<lora:x:0.8:0.2:4>", LoraWeights(0.8, 0.2, 4)),
        ("<lora:x:te=0.5>", LoraWeights(0.5, 0.5)),
        ("<lyco:x:1:unet=-0.5:dyn=8>", LoraWeights(1.0, -0.5, 8)),
        ("<lora:x:0.1:te=0.7>", LoraWeights(0.7, 0.7)),
    ],
)
def test_weights(text: str, weights: LoraWeights) -> None:
    assert lora_weights(take_networks(text)[1][0]) == weights


@pytest.mark.parametrize(
    "text",
    [
        *("<lora:x:strong>", "<lora:x:nan>", "<lora:x:inf>", "<lora:x:1:1:1.5>", "<lora:x:1:1:0>", "<lora:x:1:2:3:4>"),
        *("<lora:te=1>", "<lora:x:lbw=1>", "<lora:x:te=1:te=2>", "<lora::1>", "<lora:x:te=>"),
    ],
)
def test_weights_that_mean_nothing(text: str) -> None:
    with pytest.raises(RequestError, match="<lora:") as caught:
        lora_weights(take_networks(text)[1][0])
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a # b", "a \n"),
        ("a # b\nc", "a \nc"),
        ("# b\nc", "\nc"),
        ("a\n# b\nc", "a\nc"),
        ("a\n#b\n#c\nd", "a\n\nd"),
        ("a", "a"),
    ],
)
def test_comments(text: str, left: str) -> None:
    assert strip_comments(text) == left


def test_the_order_of_reading() -> None:
    read = read_prompt("a <lora:x AND y:1> b # <lora:z:1>\nAND c:2")
    assert [tag.name for tag in read.networks] == ["x AND y"]
    assert read.parts == (AndPart("a  b", 1.0), AndPart(" c", 2.0))
    negative = read_prompt("a <lora:x:1> AND b:2 ", negative=True)
    assert negative.networks == ()
    assert negative.parts == (AndPart("a <lora:x:1> AND b:2 ", 1.0),)
