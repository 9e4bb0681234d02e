"""Options of the command line that would change nothing are refused, in one line; a picture's own fields are not."""

from __future__ import annotations

import argparse

import pytest

from avila_diffusion.cli.request_options import add_request_options, given
from avila_diffusion.errors import RequestError


def options(text: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_request_options(parser)
    return parser.parse_args(text.split())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--variation-seed 5", "--variation-seed has no effect without --variation-strength"),
        ("--ngms-all", "--ngms-all has no effect without --ngms"),
        ("--s-tmin 1", "--s-tmin has no effect without --s-churn"),
        ("--s-tmax 1", "--s-tmax has no effect without --s-churn"),
        ("--s-churn 1 --s-tmin 5 --s-tmax 1", "--s-tmin 5 lies above --s-tmax 1"),
        ("--cfg 7 --cfg-list 7,1", "--cfg-list takes the place of --cfg"),
        ("--sigmas 14,3,0 --steps 5", "3 levels, which are 2 steps, and --steps asks for 5"),
        ("--cfg-list 7,5,3 --steps 2", "names 3 scales for 2 steps"),
        ("--cfg-list 1,x", "write it as 9,7,5"),
        ("--sigmas 1,x", "write it as 14.6,3.5,0.8,0"),
    ],
)
def test_refused(text: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        given(options(text))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_what_has_an_effect_is_taken() -> None:
    assert given(options("--sigmas 14,3,0 --steps 2"))["steps"] == 2
    assert given(options("--variation-seed 5 --variation-strength 0.1"))["variation_seed"] == 5
    assert given(options("--variation-seed 5"), {"variation_strength"}) == {"variation_seed": 5}
