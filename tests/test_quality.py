"""The pure functions of `benchmarks.quality`: what judges a model must itself be right."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from avila_diffusion.sampling.guidance import Call, Denoised

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.drawing import Panel, draw_plot, draw_sheet
from benchmarks.features import (
    LOOK,
    SHAPE,
    FeatureSpace,
    Logistic,
    describe,
    find_foreground,
    interval,
    name_colours,
    rank,
    spread,
    to_oklab,
)
from benchmarks.painter import in_step
from benchmarks.quality import UNSEEN, psnr, sheet_prompts, shift_within, table, thing

Pixels = NDArray[np.uint8]
NAMED = {
    "red": (211, 47, 47),
    "orange": (245, 145, 30),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "blue": (30, 120, 220),
    "purple": (130, 60, 190),
    "pink": (244, 143, 177),
    "brown": (121, 85, 62),
    "black": (40, 40, 42),
    "grey": (140, 143, 146),
    "white": (226, 228, 231),
}


def draw(kind: str, colour: tuple[int, int, int], shift: int = 0) -> Pixels:
    """A thing of 80 pixels on white."""
    picture = Image.new("RGB", (128, 128), "white")
    pen = ImageDraw.Draw(picture)
    box = (24 + shift, 24 + shift, 104 + shift, 104 + shift)
    if kind == "disc":
        pen.ellipse(box, colour)
    elif kind == "square":
        pen.rectangle(box, colour)
    else:
        pen.polygon([(64 + shift, 24 + shift), (104 + shift, 104 + shift), (24 + shift, 104 + shift)], colour)
    return np.asarray(picture)


def test_oklab_of_white_black_and_red() -> None:
    lab = to_oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8))
    wanted = [(1, 0, 0), (0, 0, 0), (0.62796, 0.22486, 0.12585)]  # Ottosson's table
    assert np.abs(lab - np.array(wanted)).max() < 1e-4


def test_foreground_holds_enclosed_white() -> None:
    picture = draw("disc", (0, 0, 200))
    picture = picture.copy()
    picture[60:68, 60:68] = 255
    found = find_foreground(to_oklab(picture[None]))[0]
    assert found[64, 64]
    assert not found[2, 2]
    assert abs(found.sum() / (np.pi * 40.5**2) - 1) < 0.02


def test_every_colour_is_named() -> None:
    made = np.stack([draw("disc", value) for value in NAMED.values()])
    assert name_colours(made) == list(NAMED)


def test_shape_is_told_apart_from_colour() -> None:
    gallery = [(kind, name) for kind in ("disc", "square", "triangle") for name in NAMED if name != "white"]
    blocks = describe(np.stack([draw(kind, NAMED[name]) for kind, name in gallery]))
    asked = describe(np.stack([draw(kind, (90, 160, 140), 3) for kind in ("disc", "square", "triangle")]))
    space = FeatureSpace.fit(blocks, SHAPE)
    ranks = rank(space.place(asked), ["disc", "square", "triangle"], space.place(blocks), [kind for kind, _ in gallery])
    assert ranks.tolist() == [1, 1, 1]


def test_look_finds_shape_and_colour_after_a_shift() -> None:
    gallery = [(kind, name) for kind in ("disc", "square", "triangle") for name in NAMED]
    blocks = describe(np.stack([draw(kind, NAMED[name]) for kind, name in gallery]))
    asked = describe(np.stack([draw(kind, NAMED[name], 3) for kind, name in gallery]))
    space = FeatureSpace.fit(blocks, LOOK)
    labels = [f"{kind} {name}" for kind, name in gallery]
    assert rank(space.place(asked), labels, space.place(blocks), labels).max() == 1


def test_rank_counts_labels_not_pictures() -> None:
    gallery = np.array([(1.0, 0.0), (0.9, 0.1), (0.8, 0.2), (0.0, 1.0)], np.float32)
    query = np.array([(1.0, 0.0)], np.float32)
    assert rank(query, ["b"], gallery, ["a", "a", "b", "c"]).tolist() == [2]
    assert rank(query, ["c"], gallery, ["a", "a", "b", "c"]).tolist() == [3]


def test_spread_of_two_opposite_points() -> None:
    assert spread(np.array([(1, 0), (-1, 0)], np.float32)) == pytest.approx(2.0)


def test_interval_is_that_of_the_binomial() -> None:
    mean, low, high = interval([True] * 200 + [False] * 200)
    assert mean == 0.5
    assert abs(low - 0.451) < 0.01
    assert abs(high - 0.549) < 0.01
    assert interval([1, 1, 1]) == (1.0, 1.0, 1.0)


def test_logistic_learns_a_plane() -> None:
    numbers = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    truth = numbers[:, 0] - 2 * numbers[:, 3] > 0.5
    model = Logistic.fit(numbers[:300], truth[:300])
    assert (model.holds(numbers[300:]) == truth[300:]).mean() > 0.95


def test_psnr() -> None:
    assert psnr(255.0**2) == pytest.approx(0.0)
    assert psnr(1.0) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(0.0) == pytest.approx(100.0)


def test_samplers_are_driven_together() -> None:
    """Each gets its own answers, and all are asked at once."""

    def run(x: Tensor) -> Generator[Call, Denoised, Tensor]:
        for step in range(3):
            x = x + (yield Call(x, 3.0 - step, step)).x0
        return x

    sizes = []

    def answer(asked: object) -> list[Denoised]:
        calls = list(asked)  # type: ignore[call-overload]
        sizes.append(len(calls))
        return [Denoised(call.x * 2) for call in calls]

    finished = in_step([run(torch.tensor([float(k)])) for k in range(4)], answer)
    assert [float(x) for x in finished] == [27.0 * k for k in range(4)]
    assert sizes == [4, 4, 4]


def test_prompts() -> None:
    prompts = sheet_prompts()
    assert len(prompts) == len(set(prompts)) == 48
    assert all(" ".join(prompt.split()) == prompt for prompt in prompts)
    row = {"text": "a 3d render of a red apple", "style": "3d", "emoji": "🍎"}
    assert UNSEEN.format(thing=thing(row), style="3d") == "an icon of a red apple, 3d look"


def test_shifting_stays_within_a_style() -> None:
    rows = [
        {"style": style, "emoji": emoji} for style, emoji in (("3d", "a"), ("flat", "b"), ("3d", "c"), ("flat", "d"))
    ]
    assert [row["emoji"] for row in shift_within(rows)] == ["c", "d", "a", "b"]
    assert [row["style"] for row in shift_within(rows)] == ["3d", "flat", "3d", "flat"]


def test_table_and_pictures() -> None:
    lines = table({"a": {"share": [0.5, 0.4, 0.6], "count": 3}})
    assert lines[1].endswith("50.0%   40.0% to 60.0%")
    sheet = draw_sheet(np.stack([draw("disc", (255, 0, 0))] * 9), ["a red disc"] * 9)
    assert sheet.width == 8 * 134 + 6
    plot = draw_plot([Panel("title", "steps", (5, 10), {"one": (0.0, 1.0)})])
    assert len(plot.getcolors(maxcolors=1 << 20) or []) > 10
