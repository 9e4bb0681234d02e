"""A picture of which a part is painted keeps its own size where none is asked for, and all that is not painted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from avila_diffusion.infotext import read
from avila_diffusion.metadata import request_of
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.forecast import BYTES_A_PIXEL, Outlook
from avila_diffusion.pipeline.inputs import read_inputs
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.pipeline.ledger import Ledger
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress

Finish = Callable[[Iterator[Progress | GenerateResult]], GenerateResult]
Pixels = NDArray[np.uint8]


def photo(width: int, height: int) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 % 256, y * 3 % 256, (x + y) * 2 % 256], -1).astype(np.uint8)


def nothing(width: int, height: int) -> Pixels:
    return np.zeros((height, width), np.uint8)


def corner(width: int, height: int) -> Pixels:
    """A mask of what lies right and below."""
    mask = nothing(width, height)
    mask[height // 2 :, width // 2 :] = 255
    return mask


def asked(**options: Any) -> GenerateRequest:
    return GenerateRequest.from_dict({"prompt": "a cat", "steps": 2, "sampler": "Euler a", "seed": 3, **options})


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((72, 64), (72, 64)), ((75, 93), (72, 88)), ((9, 40), (64, 128)), ((400, 300), (144, 104)), ((20, 20), (64, 64))],
)
def test_it_comes_out_as_large_as_it_is(
    size: tuple[int, int], drawn: tuple[int, int], make_engine: Any, finish: Finish
) -> None:
    engine, picture = make_engine(), photo(*size)
    made = finish(engine.generate(asked(image=picture, mask=nothing(*size))))
    assert (made.to_numpy() == picture).all(), "an empty mask gives the picture back"
    assert (made.request.width, made.request.height) == drawn
    assert made.drawn_at == (None if size == drawn else drawn)
    painted = finish(engine.generate(asked(image=picture, mask=corner(*size), mask_blur=0))).to_numpy()
    kept = corner(*size) == 0
    assert (painted[kept] == picture[kept]).all()
    assert (painted[~kept] != picture[~kept]).mean() > 0.5


def test_what_is_painted_lies_where_it_was(make_engine: Any, finish: Finish) -> None:
    """At strength 0 a picture is encoded and decoded only: the tiny autoencoder is no guide, but fitting there and back is."""
    y, x = np.mgrid[:200, :301]
    smooth = np.stack([x * 255 // 300, y * 255 // 199, (x + y) * 255 // 499], -1).astype(np.uint8)
    request = asked(image=smooth, mask=np.full((200, 301), 255, np.uint8)).resolved(128)
    inputs = read_inputs(request, request)
    assert inputs is not None and inputs.pixels is not None and inputs.frame is not None
    assert inputs.pixels.shape == (request.height, request.width, 3) != smooth.shape
    back = inputs.frame.around(inputs.pixels).astype(int)
    assert np.abs(back - smooth).max() <= 4


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("outpaint", [(33, 0, 0, 0), (1, 2, 3, 4), (64, 64, 64, 64)])
def test_outpainting_adds_that_many_pixels(
    outpaint: tuple[int, int, int, int], fixed: bool, make_engine: Any, finish: Finish
) -> None:
    engine = make_engine(**({"fixed_size": "true"} if fixed else {}))
    left, upper, right, lower = outpaint
    made = finish(engine.generate(asked(image=photo(70, 66), outpaint=outpaint, mask_blur=0))).to_numpy()
    assert made.shape == (66 + upper + lower, 70 + left + right, 3)
    assert (made[upper : upper + 66, left : left + 70] == photo(70, 66)).all()


def test_an_explicit_size_is_what_comes_out(make_engine: Any, finish: Finish) -> None:
    engine, named = make_engine(), {"image": photo(75, 93), "mask": corner(75, 93)}
    assert finish(engine.generate(asked(**named, width=72, height=88))).to_numpy().shape == (88, 72, 3)
    assert finish(engine.generate(asked(**named, width=72))).to_numpy().shape == (88, 72, 3)
    kept = finish(engine.generate(asked(**named, width=64, height=64, resize_mode="keep")))
    assert kept.to_numpy().shape == (93, 75, 3)
    assert (kept.to_numpy()[:40, :30] == named["image"][:40, :30]).all()
    assert kept.drawn_at == (64, 64)


def test_a_picture_without_a_mask_may_keep_its_size(make_engine: Any, finish: Finish) -> None:
    engine = make_engine()
    assert finish(engine.generate(asked(image=photo(75, 93)))).to_numpy().shape == (88, 72, 3)
    kept = finish(engine.generate(asked(image=photo(75, 93), resize_mode="keep")))
    assert kept.to_numpy().shape == (93, 75, 3)
    assert kept.notes == ()


def test_it_is_made_again_from_what_it_tells(make_engine: Any, finish: Finish) -> None:
    engine, named = make_engine(), {"image": photo(75, 93), "mask": corner(75, 93)}
    made = finish(engine.generate(asked(**named)))
    told = read(made[0].infotext or "").fields
    assert (told["Size-1"], told["Size-2"], told["Resize mode"]) == ("72", "88", "Keep size")
    for record in (made[0].record, ""):
        found = request_of({"parameters": made[0].infotext or "", "avila": record or "{}"})
        assert not found.lost
        again = finish(engine.generate(GenerateRequest.from_dict({**found.request_values, **named})))
        assert again.to_numpy().tobytes() == made.to_numpy().tobytes()
    assert "request" not in json.loads(made[0].record or ""), "the infotext says it all"
    resolved = GenerateRequest.from_dict(json.loads(json.dumps(made.request.to_dict())))
    assert finish(engine.generate(resolved)).to_numpy().tobytes() == made.to_numpy().tobytes()


def test_a_journal_goes_on_to_the_same_bytes(make_engine: Any, finish: Finish, tmp_path: Path) -> None:
    engine: ModelEngine = make_engine()
    request = engine.accept(asked(image=photo(75, 93), mask=corner(75, 93), steps=4))
    expected = finish(engine.generate(request)).to_numpy()
    with Journal.create(tmp_path / "run", {"request": request.to_dict()}) as journal:
        run = engine.generate(request, None, Ledger(journal))
        for _ in run:
            if journal.calls >= 2:
                break
        run.close()  # type: ignore[attr-defined]
    with Journal.reopen(tmp_path / "run") as journal:
        assert journal.calls == 2
        assert (finish(engine.generate(journal.request, None, Ledger(journal))).to_numpy() == expected).all()


def test_a_resize_mode_that_changes_nothing_is_told(make_engine: Any, finish: Finish) -> None:
    named = {"image": photo(75, 93), "mask": corner(75, 93)}
    (note,) = finish(make_engine().generate(asked(**named, resize_mode="crop"))).notes
    assert note == "resize_mode was not used, because no size is asked for, and the picture keeps its own"


def test_only_masked_needs_no_resize_mode(make_engine: Any, finish: Finish) -> None:
    engine = make_engine()
    named = {"image": photo(75, 93), "mask": corner(75, 93), "inpaint_area": "masked", "width": 64, "height": 64}
    plain = finish(engine.generate(asked(**named)))
    latent = finish(engine.generate(asked(**named, resize_mode="latent")))
    assert latent.to_numpy().tobytes() == plain.to_numpy().tobytes()
    assert latent.request == plain.request
    assert latent.notes == (
        "resize_mode was not used, because what is masked is cut out in the proportions that are drawn",
    )
    tiny = {**named, "image": photo(5, 5), "mask": corner(5, 5)}
    assert finish(engine.generate(asked(**tiny, resize_mode="latent"))).to_numpy().shape == (5, 5, 3)


def test_a_large_picture_that_is_kept_is_forecast(make_engine: Any) -> None:
    engine = make_engine()
    large, small = (
        Outlook(engine, engine.accept(asked(image=photo(800, 600), mask=corner(800, 600), **more)))
        for more in ({}, {"width": 144, "height": 104})
    )
    assert large.latent == small.latent
    assert large.finishing - small.finishing == BYTES_A_PIXEL * (800 * 600 - 144 * 104)
