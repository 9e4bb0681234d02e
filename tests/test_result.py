"""The result: a sequence of pictures, and with one picture that picture itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest

from avila_diffusion.errors import OutputProblem
from avila_diffusion.images import Image, read_image
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult, Progress


def result(count: int) -> GenerateResult:
    images = tuple(
        Image(np.full((2, 3, 3), 10 * n, np.uint8), infotext=f"picture {n}", seed=7 + n) for n in range(count)
    )
    return GenerateResult(images, GenerateRequest(seed=7, count=count), seconds=1.5)


def test_it_is_a_sequence() -> None:
    made = result(3)
    assert isinstance(made, Sequence)
    assert len(made) == 3
    assert list(made) == [made[0], made[1], made[2]] == list(made.images)
    assert made[-1] is made.images[2]
    assert made[1:] == made.images[1:]
    assert next(reversed(made)) is made[2]
    assert made[1] in made and made.index(made[1]) == 1
    with pytest.raises(IndexError):
        _ = made[3]
    assert made.seed == 7
    assert made.report is None


def test_it_is_its_first_picture() -> None:
    made = result(1)
    assert made.to_numpy().shape == (2, 3, 3)
    assert made.to_pil().size == (3, 2)
    assert made.to_pil().info["parameters"] == "picture 0"


def test_one_picture_is_saved_under_its_name(tmp_path: Path) -> None:
    assert result(1).save_png(str(tmp_path / "new" / "a.png")) == [tmp_path / "new" / "a.png"]
    assert result(1).save_png(tmp_path / "b") == [tmp_path / "b.png"]
    assert read_image(tmp_path / "b.png").infotext == "picture 0"


def test_several_pictures_are_numbered(tmp_path: Path) -> None:
    paths = result(3).save_png(tmp_path / "a.png")
    assert paths == [tmp_path / f"a-{n}.png" for n in (1, 2, 3)]
    assert [read_image(path).infotext for path in paths] == ["picture 0", "picture 1", "picture 2"]
    assert result(2).save_png(tmp_path / "b") == [tmp_path / "b-1.png", tmp_path / "b-2.png"]
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("count", [1, 2])
def test_what_cannot_be_written(count: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in ("", tmp_path.anchor, tmp_path / "a.jpg", tmp_path / "file" / "a.png"):
        with pytest.raises(OutputProblem) as caught:
            result(count).save_png(target)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]


def test_an_event_is_a_value() -> None:
    event = Progress(stage="sample", image=0, images=1, step=1, of=3, sigma=2.0, preview=lambda: result(1)[0])
    assert event == Progress(stage="sample", image=0, images=1, step=1, of=3, sigma=2.0)
    with pytest.raises(FrozenInstanceError):
        event.step = 2  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_is_no_name(count: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputProblem, match="is a folder"):
        result(count).save_png(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
