"""Journals of runs that begin with pictures and of runs with two passes: stopped anywhere, they go on to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from avila_diffusion.errors import JournalProblem
from avila_diffusion.pipeline.branch import Branch
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.pipeline.ledger import Ledger
from avila_diffusion.pipeline.trail import Trail
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress
from avila_diffusion.sampling.guidance import Call, Denoised

Finish = Callable[[Iterator[Progress | GenerateResult]], GenerateResult]


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)


def requests(photo: NDArray[np.uint8]) -> dict[str, GenerateRequest]:
    base: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "steps": 3, "sampler": "Euler a", "seed": 5}
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 8:40] = 255
    return {
        "masked": GenerateRequest.from_dict({**base, "image": photo, "mask": mask, "masked_content": "noise"}),
        "latent": GenerateRequest.from_dict({**base, "hires_scale": 1.5, "strength": 0.6}),
        "pixels": GenerateRequest.from_dict({**base, "hires_scale": 1.5, "strength": 0.6, "hires_upscaler": "Lanczos"}),
    }


@pytest.mark.parametrize("kind", ["masked", "latent", "pixels"])
@pytest.mark.parametrize("calls", [1, 3, 4, 5])
def test_it_goes_on_to_the_same_bytes(
    kind: str,
    calls: int,
    photo: NDArray[np.uint8],
    make_engine: Any,
    finish: Finish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine: ModelEngine = make_engine()
    request = engine.accept(requests(photo)[kind])
    expected = finish(engine.generate(request))
    path = tmp_path / "run"
    with Journal.create(path, {"request": request.to_dict()}) as journal:
        run = engine.generate(request, None, Ledger(journal))
        for _ in run:
            if journal.calls >= calls:
                break
        run.close()  # type: ignore[attr-defined]
    with Journal.reopen(path) as journal:
        assert journal.request == request
        before = journal.calls
        made: list[int] = []
        right = journal.add_call

        def counted(image: int, call: Call, denoised: Denoised) -> None:
            made.append(call.number)
            right(image, call, denoised)

        monkeypatch.setattr(journal, "add_call", counted)
        again = finish(engine.generate(journal.request, None, Ledger(journal)))
        total = 3 if kind == "masked" else 6
        assert made == list(range(before, total))
    assert (again.to_numpy() == expected.to_numpy()).all()
    assert again[0].infotext == expected[0].infotext


def test_a_second_pass_is_not_begun_anew(
    photo: NDArray[np.uint8], make_engine: Any, finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it begins with is recorded: a picture that another VAE would encode otherwise is not encoded again."""
    engine: ModelEngine = make_engine()
    request = engine.accept(requests(photo)["pixels"])
    path = tmp_path / "run"
    with Journal.create(path, {"request": request.to_dict()}) as journal:
        expected = finish(engine.generate(request, None, Ledger(journal)))
    from avila_diffusion.pipeline import run as run_module

    monkeypatch.setattr(run_module, "encode", lambda *args: pytest.fail("encoded again"))
    with Journal.reopen(path) as journal:
        again = finish(engine.generate(journal.request, None, Ledger(journal)))
    assert (again.to_numpy() == expected.to_numpy()).all()


def test_another_picture_is_noticed(photo: NDArray[np.uint8], make_engine: Any, finish: Finish, tmp_path: Path) -> None:
    from dataclasses import replace

    from avila_diffusion.pictures import Picture

    engine: ModelEngine = make_engine()
    request = engine.accept(requests(photo)["masked"])
    path = tmp_path / "run"
    with Journal.create(path, {"request": request.to_dict()}) as journal:
        finish(engine.generate(request, None, Ledger(journal)))
    with Journal.reopen(path) as journal, pytest.raises(JournalProblem, match="call 1 of picture 1"):
        finish(engine.generate(replace(request, image=Picture.of(255 - photo, "image")), None, Ledger(journal)))


def test_a_branch_leaves_the_first_pass(
    photo: NDArray[np.uint8], make_engine: Any, finish: Finish, tmp_path: Path
) -> None:
    from dataclasses import replace

    engine: ModelEngine = make_engine()
    request = engine.accept(requests(photo)["latent"])
    path = tmp_path / "run"
    with Journal.create(path, {"request": request.to_dict()}) as journal:
        finish(engine.generate(request, None, Ledger(journal)))
    changed = replace(request, prompt="a dog")
    with Journal.read(path) as journal:
        journal.cut(2)
        trail = Trail()
        branch = finish(engine.generate(changed, None, Ledger(journal, 0, Branch(2, request), trail)))
    whole = Trail()
    finish(engine.generate(changed, None, Ledger(trail=whole)))
    assert len(trail.pictures[0]) == len(whole.pictures[0]) == 6
    assert [call.number for call in trail.pictures[0]] == list(range(6))
    assert trail.pictures[0][0].answered != whole.pictures[0][0].answered
    assert branch[0].infotext is not None
