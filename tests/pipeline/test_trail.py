"""Trails: identical, the same but for rounding, or the first call that differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avila_diffusion.errors import JournalProblem
from avila_diffusion.pipeline.trail import Footprint, Trail, compare, compare_pixels, read_trail
from avila_diffusion.sampling.guidance import Call, Denoised


def trail(change: float = 0.0, at: int = 1, calls: int = 3) -> list[Footprint]:
    """Of numbers up to 2, all of one call's changed."""
    made = Trail()
    for number in range(calls):
        x = torch.linspace(-2, 2, 256).reshape(1, 4, 8, 8)
        answer = x + (change if number == at else 0)
        made.add(0, Call(x, 3.0 - number, number, number=number), Denoised(answer))
    return made.pictures[0]


def test_the_values_are_spread_evenly() -> None:
    values = trail()[0].values
    assert values == tuple(torch.linspace(-2, 2, 256)[::4].tolist())
    small = Footprint.of(Call(torch.ones(1, 4, 2, 2), 1.0, 0), Denoised(torch.arange(16.0).reshape(1, 4, 2, 2)))
    assert small.values == tuple(range(16))


@pytest.mark.parametrize(
    ("made", "same", "says"),
    [
        (trail(), True, "identical in all 3 calls"),
        (trail(1e-4), True, "same within 0.0001 (largest difference 5e-05)"),
        (trail(3e-4), False, "differs first at call 2 (step 2, sigma 2): by 0.00015 of the largest number"),
        (trail(float("nan")), False, "differs first at call 2 (step 2, sigma 2): by nan of the largest number"),
        (trail(calls=2), False, "differs in length: 2 calls, recorded were 3"),
        ([replace(one, step=0) for one in trail()], False, "differs first at call 2 (step 1, sigma 2)"),
        ([replace(one, sigma=2.0) for one in trail()], False, "differs first at call 1 (step 1, sigma 2)"),
        ([replace(one, asked="") for one in trail()], True, "same within 0.0001 (largest difference 0)"),
    ],
)
def test_verdicts(made: list[Footprint], same: bool, says: str) -> None:
    verdict = compare(trail(), made)
    assert verdict.same is same
    assert verdict.says.startswith(says)


def test_a_trail_on_disk(tmp_path: Path) -> None:
    kept = Trail({0: trail()})
    path = kept.save(0, tmp_path / "a.trail", {"request": {"seed": 1}})
    assert path.stat().st_size < 3 * 700
    header, footprints = read_trail(path)
    assert header["request"] == {"seed": 1}
    assert footprints == trail()
    for text in ("", "[]", '{"avila_trail": 2}', '{"avila_trail": 1, "calls": [{"values": "?"}]}', "[" * 100_000):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(JournalProblem, match="trail"):
            read_trail(path)


def test_pixels() -> None:
    grey = np.full((4, 5, 3), 100, np.uint8)
    assert compare_pixels(grey, grey.copy()).says == "identical in every pixel"
    other = grey.copy()
    other[0, 0, 1] = 99
    assert compare_pixels(grey, other).same
    other[0, 1, 1] = 250
    assert compare_pixels(grey, other).says == "differs: 10.00% of the pixels differ, by at most 150 of 255"
    assert not compare_pixels(grey, grey[:2]).same
