"""The Brownian path, to the bit against torchsde's tree and k-diffusion's use of it, and as a Brownian path."""

from __future__ import annotations

import random
import warnings
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.sampling.brownian import DIGITS, KEPT, BrownianPath, path_noise
from avila_diffusion.sampling.noise import MAX_SEED, ImageNoise, Rng, Seeding, noise_source

SHAPE = (4, 5, 6)
LOW, HIGH = 0.0291671582, 14.6146412293
RANGES = [(LOW, HIGH), (0.03, 4518.76), (0.5, 0.50001), (1.0, 1.000001), (0.0316227766, 3.0)]
KARRAS = torch.tensor([HIGH, 9.102928, 5.478392, 3.168618, 1.0, 0.3, 0.0818907, LOW, 0.0], dtype=torch.float64)


def draw_from(rng: Rng, shape: tuple[int, ...] = SHAPE) -> Any:
    return lambda seed: noise_source(rng, seed).draw(shape)


def path_of(seed: int = 3, ends: tuple[float, float] = (LOW, HIGH), rng: Rng = "cpu") -> BrownianPath:
    return BrownianPath(draw_from(rng), seed, *ends)


@pytest.fixture
def torchsde() -> ModuleType:
    module: ModuleType = pytest.importorskip("torchsde", reason="torchsde is not installed")
    return module


@pytest.fixture
def drawing_nv(torchsde: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchsde with the numbers of the nv source, as AUTOMATIC1111 changes it."""

    def randn(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
        return noise_source("nv", int(seed)).draw(tuple(size)).to(device=device, dtype=dtype)

    monkeypatch.setattr("torchsde._brownian.brownian_interval._randn", randn)


def queries(ends: tuple[float, float], count: int, seed: int) -> list[tuple[float, float]]:
    """Pairs of levels, some of many decimals; never two that are the same when rounded."""
    dice = random.Random(seed)
    levels = [round(dice.uniform(*ends), dice.choice([2, 4, 6, 9])) for _ in range(count)] + list(ends)
    pairs = (sorted(dice.sample(levels, k=2)) for _ in range(count))
    return [(low, high) for low, high in pairs if round(low, DIGITS) != round(high, DIGITS)]


def same_as_torchsde(torchsde: ModuleType, ends: tuple[float, float], seed: int, rng: Rng) -> None:
    tree = torchsde.BrownianTree(ends[0], torch.zeros(SHAPE), ends[1], entropy=seed)
    path = path_of(seed, ends, rng)
    asked = queries(ends, 16, seed % 1000)
    assert asked
    for low, high in asked:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an end that was rounded inwards
            expected = tree(low, high)
        assert torch.equal(path.increment(low, high), expected), (low, high)


@pytest.mark.parametrize("ends", RANGES, ids=str)
@pytest.mark.parametrize("seed", [0, 42, 2**32 + 5, MAX_SEED])
def test_any_increment_is_torchsdes_to_the_bit(torchsde: ModuleType, ends: tuple[float, float], seed: int) -> None:
    same_as_torchsde(torchsde, ends, seed, "cpu")


@pytest.mark.usefixtures("drawing_nv")
def test_with_numbers_of_the_nv_source_too(torchsde: ModuleType) -> None:
    same_as_torchsde(torchsde, (LOW, HIGH), 42, "nv")


@pytest.mark.usefixtures("drawing_nv")
def test_step_noise_is_k_diffusions_to_the_bit(
    torchsde: ModuleType, k_diffusion: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTOMATIC1111's set-up: a tree for every image, entropy its seed, from the lowest level above 0 to the highest."""
    monkeypatch.setattr(k_diffusion.sampling, "torchsde", torchsde)
    sigmas, seeds = KARRAS.float(), [42, 43, MAX_SEED]
    low, high = sigmas[sigmas > 0].min(), sigmas.max()
    sampler = k_diffusion.sampling.BrownianTreeNoiseSampler(torch.zeros(3, *SHAPE), low, high, seed=seeds)
    images = [ImageNoise(Seeding(seed=seed)) for seed in seeds]
    noises = [image.between(torch.zeros(1, *SHAPE), KARRAS, brownian=True) for image in images]
    middles = (sigmas[:-2] * sigmas[1:-1]).sqrt()
    steps = [*pairwise(sigmas[:-1]), *zip(sigmas[:-2], middles, strict=True)]
    for sigma, sigma_next in [*steps, (sigmas[3], sigmas[2])]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the ends are rounded, the lowest level and the highest are not
            expected = sampler(sigma, sigma_next)
        for row, noise in enumerate(noises):
            assert torch.equal(noise(float(sigma), float(sigma_next)), expected[row : row + 1])


def test_levels_beyond_the_ends_count_as_the_ends_without_a_warning(
    torchsde: ModuleType, k_diffusion: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(k_diffusion.sampling, "torchsde", torchsde)
    sampler = k_diffusion.sampling.BrownianTreeNoiseSampler(torch.zeros(1, *SHAPE), LOW, HIGH, seed=[8])
    noise = ImageNoise(Seeding(seed=8, rng="cpu")).between(torch.zeros(1, *SHAPE), KARRAS, brownian=True)
    for sigma, sigma_next in [(0.3, 0.0), (20.0, 5.0), (LOW, 0.01)]:
        got = noise(sigma, sigma_next)  # a warning would be an error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(got, sampler(sigma, sigma_next))


def test_levels_that_are_the_same_when_rounded_are_no_step() -> None:
    """torchsde never comes back from these (RecursionError)."""
    path = path_of()
    assert torch.equal(path.increment(3.0000001, 3.0000004), torch.zeros(SHAPE))
    assert torch.equal(path.increment(2.0, 2.0), torch.zeros(SHAPE))


def test_recorded_increments() -> None:
    """torchsde 0.2.6: BrownianTree(0.5, zeros(2), 2.0, entropy=7), read at (0.5, 2), (0.75, 1.3), (1.3, 1.300002)."""
    path = BrownianPath(draw_from("cpu", (2,)), 7, 0.5, 2.0)
    for query, expected in RECORDED.items():
        torch.testing.assert_close(path.increment(*query), torch.tensor(expected), rtol=1e-6, atol=1e-9)


RECORDED = {
    (0.5, 2.0): [-2.47631669, 3.01918793],
    (0.75, 1.3): [-1.16725767, 0.856524527],
    (1.3, 1.300002): [-0.00137735659, 0.00173307979],
}


def test_the_path_does_not_depend_on_what_was_asked_before() -> None:
    used = path_of()
    asked = queries((LOW, HIGH), 30, 1)
    answers = [used.increment(*query) for query in asked]
    for query, answer in reversed(list(zip(asked, answers, strict=True))):
        assert torch.equal(path_of().increment(*query), answer)
        assert torch.equal(used.increment(*query), answer)


def test_memory_is_bounded() -> None:
    path = path_of(rng="cpu")
    for query in queries((LOW, HIGH), 40, 2):
        path.increment(*query)
        assert len(path._known) <= KEPT
    assert len(path._known) == KEPT


def test_a_level_is_drawn_once_for_the_two_steps_that_meet_there() -> None:
    drawn: list[int] = []

    def draw(seed: int) -> Tensor:
        drawn.append(seed)
        return noise_source("cpu", seed).draw((2,))

    path = BrownianPath(draw, 5, LOW, HIGH)
    levels = KARRAS[:-1].tolist()
    for high, low in pairwise(levels):
        path.increment(low, high)
    assert len(drawn) == len(set(drawn))
    assert len(drawn) <= 24 * len(levels)


def test_increments_add_up() -> None:
    path = path_of()
    for low, high in queries((LOW, HIGH), 10, 4):
        middle = round((low + high) / 2, DIGITS)
        parts = path.increment(low, middle) + path.increment(middle, high)
        torch.testing.assert_close(parts, path.increment(low, high), rtol=1e-5, atol=1e-5)


def test_increments_have_the_variance_of_their_length_and_are_independent() -> None:
    path = BrownianPath(draw_from("nv", (40_000,)), 11, LOW, HIGH)
    levels = [LOW, 0.1, 1.0, 3.7, 4.0, 9.0, HIGH]
    pieces = [path.increment(low, high) / (high - low) ** 0.5 for low, high in pairwise(levels)]
    covariance = torch.cov(torch.stack(pieces).double())
    torch.testing.assert_close(covariance, torch.eye(len(pieces), dtype=torch.float64), rtol=0, atol=6 / 200)


def test_step_noise_is_unit_and_goes_down_the_path() -> None:
    path = path_of()
    noise = path_noise(path, 3.0, 1.0)
    torch.testing.assert_close(noise * 2**0.5, -path.increment(1.0, 3.0))
    torch.testing.assert_close(path_noise(path, 1.0, 3.0), -noise)
    assert torch.equal(path_noise(path, 2.0, 2.0), torch.zeros(SHAPE))


def test_it_is_cast_to_the_latents_dtype_from_float32() -> None:
    like = torch.zeros(1, *SHAPE)
    single = ImageNoise(Seeding(seed=5)).between(like, KARRAS, brownian=True)(3.0, 1.0)
    double = ImageNoise(Seeding(seed=5)).between(like.double(), KARRAS, brownian=True)(3.0, 1.0)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)
    assert single.shape == (1, *SHAPE)


def test_the_path_is_the_seeds_whatever_was_drawn_before() -> None:
    """AUTOMATIC1111: entropy is the image's seed; variation and ENSD do not reach it, nor does the first noise."""
    like, steps = torch.zeros(1, *SHAPE), (3.0, 1.0)
    plain = ImageNoise(Seeding(seed=5)).between(like, KARRAS, brownian=True)(*steps)
    varied = ImageNoise(Seeding(seed=5, ensd=31337, variation_seed=9, variation_strength=0.5))
    varied.initial(SHAPE)
    assert torch.equal(varied.between(like, KARRAS, brownian=True)(*steps), plain)
    other = ImageNoise(Seeding(seed=6)).between(like, KARRAS, brownian=True)(*steps)
    assert not torch.equal(other, plain)
