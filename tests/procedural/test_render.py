"""Pictures: the same bytes everywhere, every size, what words and negative words change in the pixels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avila_diffusion.errors import RequestError
from avila_diffusion.procedural.render import draw
from avila_diffusion.procedural.scenes import DRAWERS
from avila_diffusion.procedural.styles import STYLED
from avila_diffusion.procedural.understand import KINDS
from avila_diffusion.procedural.vocabulary import STYLES

Picture = NDArray[np.uint8]
SOURCE = Path(__file__).parents[2] / "src"
PROMPTS = {
    "mountains": "sunset over mountains",
    "lake": "mountain lake, milky way",
    "river": "river in autumn",
    "sea": "storm at sea",
    "beach": "tropical beach with palms",
    "island": "island with a sailboat",
    "forest": "misty forest, cherry blossom",
    "meadow": "field of red flowers",
    "hills": "hills in winter, snowing",
    "desert": "desert",
    "canyon": "canyon",
    "city": "city at night in the rain",
    "space": "galaxy",
    "underwater": "coral reef",
    "abstract": "abstract",
}


def small(prompt: str, negative: str = "", seed: int = 3, side: int = 96) -> Picture:
    return draw(prompt, negative, side, side, seed)


def digest(picture: Picture) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def difference(a: Picture, b: Picture) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_every_kind_has_a_drawer_and_every_style_a_transformation() -> None:
    assert set(DRAWERS) == {*KINDS, "space"} == set(PROMPTS)
    assert set(STYLED) == set(STYLES) - {"photo"}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_picture_has_something_on_it_and_comes_again(prompt: str) -> None:
    picture = small(prompt)
    assert picture.shape == (96, 96, 3) and picture.dtype == np.uint8
    assert picture.std() > 12
    assert digest(small(prompt)) == digest(picture)
    assert digest(small(prompt, seed=4)) != digest(picture)


@pytest.mark.parametrize("style", STYLED)
def test_a_style_changes_the_picture_and_comes_again(style: str) -> None:
    plain, styled = small("mountain lake at sunset"), small(f"mountain lake at sunset, {style}")
    assert difference(plain, styled) > 2
    assert digest(styled) == digest(small(f"mountain lake at sunset, {style}"))


def test_the_same_bytes_in_another_process_and_no_torch() -> None:
    code = (
        "import sys, hashlib\n"
        "from avila_diffusion.procedural.render import draw\n"
        "print(hashlib.sha256(draw('lake at sunset, oil painting', 'fog', 80, 64, 9).tobytes()).hexdigest())\n"
        "print('torch' in sys.modules or 'PIL' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "123"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [digest(draw("lake at sunset, oil painting", "fog", 80, 64, 9)), "False"]


def test_threads_do_not_disturb_each_other() -> None:
    prompts = [*PROMPTS.values(), "lake, watercolour", "lake, poster", "lake, line art"]
    alone = [digest(small(prompt)) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: digest(small(prompt)), prompts)) == alone


def test_the_global_random_state_is_left_alone() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    small("storm at sea, oil painting")
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (2, 1), (1, 3), (7, 5), (2048, 1), (1, 2048), (97, 31), (40, 200)]
)
def test_any_size(width: int, height: int) -> None:
    for number, prompt in enumerate(PROMPTS.values()):
        assert draw(prompt, "", width, height, number).shape == (height, width, 3)


@pytest.mark.parametrize("style", STYLED)
def test_any_size_in_any_style(style: str) -> None:
    for width, height in ((1, 1), (3, 2), (5, 64), (600, 1)):
        assert draw(f"mountain lake, {style}", "", width, height, 1).shape == (height, width, 3)


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, -1), (True, 8), (8.0, 8)])
def test_a_bad_size_is_refused(width: int, height: int) -> None:
    with pytest.raises(RequestError, match="pixels"):
        draw("sea", "", width, height, 1)


def thumbnail(picture: Picture, cells: int = 8) -> NDArray[np.float64]:
    step = picture.shape[0] // cells
    blocks = picture[: step * cells, : step * cells].astype(float)
    return np.asarray(blocks.reshape(cells, step, cells, step, 3).mean(axis=(1, 3)))


@pytest.mark.parametrize(
    "prompt", ["sunset over mountains", "mountain lake at sunset", "city at night", "beach by day", "forest in fog"]
)
def test_a_seed_is_the_same_scene_at_another_size(prompt: str) -> None:
    at_once, larger, other = small(prompt, side=96), small(prompt, side=192), small(prompt, seed=8, side=96)
    same = np.abs(thumbnail(at_once) - thumbnail(larger)).mean()
    assert same < 7
    assert same < 0.5 * np.abs(thumbnail(at_once) - thumbnail(other)).mean()


def test_seeds_differ_visibly() -> None:
    pictures = [small("sunset over mountains", seed=seed) for seed in range(6)]
    assert min(difference(a, b) for i, a in enumerate(pictures) for b in pictures[:i]) > 8


def mean(picture: Picture) -> NDArray[np.float64]:
    return np.asarray(picture.reshape(-1, 3).mean(axis=0))


def test_hours_and_colours_are_seen() -> None:
    red, blue = mean(small("red sunset over the sea")), mean(small("blue night over the sea"))
    assert red[0] > red[2] + 40
    assert blue[2] > blue[0] + 15
    assert red.mean() > blue.mean()
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        assert int(np.argmax(mean(small(f"{name} sunset over a lake")))) == channel
    purple = mean(small("céu roxo sobre montanhas, pôr do sol"))
    assert purple[1] < min(purple[0], purple[2]) - 15


def test_an_unwanted_colour_is_avoided() -> None:
    plain, steered = mean(small("sea by day, clear sky")), mean(small("sea by day, clear sky", "blue"))
    assert plain[2] - plain[0] > 40
    assert steered[2] - steered[0] < 0.5 * (plain[2] - plain[0])


def test_local_colours_stay_local() -> None:
    white, red = small("meadow with white flowers, day"), small("meadow with red flowers, day")
    sky, field = np.s_[:20], np.s_[70:]
    assert difference(white[sky], red[sky]) < 0.5
    assert red[field][..., 1].mean() < white[field][..., 1].mean() - 2


def roughness(picture: Picture) -> float:
    return float(np.abs(np.diff(picture.astype(float), axis=0)).mean())


def test_no_clouds_where_none_are_wanted() -> None:
    for seed in range(4):
        with_clouds = draw("cloudy sky over the sea by day", "birds", 96, 96, seed)[:40]
        without = draw("sky over the sea by day", "clouds, birds", 96, 96, seed)[:40]
        assert roughness(without) < 0.6 * roughness(with_clouds)


def test_no_sun_where_none_is_wanted() -> None:
    with_sun, without = small("sunset over the sea"), small("sunset over the sea", "sun")
    assert with_sun[:54].max(axis=(0, 1)).min() > 245
    assert without[:54].mean(axis=2).max() < 0.97 * with_sun[:54].mean(axis=2).max()


def test_no_stars_no_trees_no_fog() -> None:
    assert difference(small("night sea, full moon"), small("night sea, full moon", "stars")) > 0.1
    assert roughness(small("night sea, stars", "moon, birds")[:40]) > 2 * roughness(
        small("night sea", "stars, moon, clouds, milky way, birds")[:40]
    )
    assert roughness(small("mountains by day", "trees, birds", side=160)[110:]) < roughness(
        small("mountains by day", "birds", side=160)[110:]
    )
    clear, fog = "trees, birds, fog", "trees, birds"
    assert small("mountains by day, fog", fog).std() < 0.75 * small("mountains by day, fog", clear).std()


def test_weather_is_seen() -> None:
    clear, storm = small("sea by day"), small("storm at sea by day")
    assert storm.mean() < clear.mean() - 15
    assert small("mountains by day, winter").mean() > small("mountains by day").mean() + 10
    assert small("city at night").mean() < small("city by day").mean() - 40


def colours(picture: Picture) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def test_pixel_art_is_a_grid_of_few_colours() -> None:
    picture = draw("sunset over mountains, pixel art", "", 512, 512, 3)
    assert colours(picture) <= 24
    cells = picture.reshape(128, 4, 128, 4, 3)
    assert (cells == cells[:, :1, :, :1]).all()


def test_a_poster_has_few_inks_and_black_and_white_no_colour() -> None:
    poster, photo = small("sunset over mountains, poster", side=256), small("sunset over mountains", side=256)
    assert colours(poster // 8) < 0.35 * colours(photo // 8)
    grey = small("sunset over mountains, black and white").astype(int)
    assert np.ptp(grey, axis=2).max() <= 12


def test_line_art_is_ink_on_paper() -> None:
    picture = small("mountain lake by day, line art", side=192).astype(int)
    assert np.ptp(picture, axis=2).max() < 40
    assert (picture.mean(axis=2) > 200).mean() > 0.3
    assert (picture.mean(axis=2) < 90).mean() > 0.02


def test_gradients_show_no_bands() -> None:
    sky = draw("clear sky over the sea at dusk", "stars, birds, clouds", 256, 256, 3)[:100].astype(int)
    # Rows of this sky are nearly even: without dither neighbours are the same nearly everywhere.
    assert (np.diff(sky, axis=1) != 0).any(axis=2).mean() > 0.4
    assert np.abs(np.diff(sky, axis=1)).max() <= 4
