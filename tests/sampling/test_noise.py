from __future__ import annotations

import numpy as np
import pytest
import torch

from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.noise import initial_noise, noise_source, step_noise

# Published with AUTOMATIC1111's generator: seed 0, shape (3, 4), good to 1e-6. They were drawn with an unrounded 2 pi;
# the generator's own, rounded to float32, is up to 2.4e-7 off.
PUBLISHED = [
    [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
    [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
    [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
]


def philox_by_the_book(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python integers, as Salmon et al. 2011 draw it."""
    for turn in range(10):
        if turn:
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [high // 2**32 ^ counter[1] ^ key[0], high % 2**32, low // 2**32 ^ counter[3] ^ key[1], low % 2**32]
    return counter


def test_philox_by_the_book_gives_random123s_known_answers() -> None:
    assert philox_by_the_book([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**32 - 1
    assert philox_by_the_book([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_nv_gives_the_published_values() -> None:
    drawn = noise_source("nv", 0).draw((3, 4))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, torch.tensor(PUBLISHED), rtol=0, atol=3e-7)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_nv_is_philox_and_box_muller_in_double_precision(seed: int) -> None:
    source = noise_source("nv", seed)
    unit, turn = 2.0**-32, float(np.float32(2.0**-32 * 2 * np.pi))
    for draw in range(3):
        values = source.draw((2, 3, 5)).flatten()
        for index in range(30):
            words = philox_by_the_book([draw, 0, index, 0], [seed % 2**32, seed // 2**32])
            u, v = words[0] * unit + unit / 2, words[1] * turn + turn / 2
            assert values[index].item() == np.float32(np.sqrt(-2 * np.log(u)) * np.sin(v))


def test_cpu_is_torchs_own_stream() -> None:
    for seed in (0, 5, 2**32 - 1, 2**64 - 1):
        source, generator = noise_source("cpu", seed), torch.Generator("cpu").manual_seed(seed)
        for shape in ((4, 8, 8), (4, 3, 5), (7,)):
            assert torch.equal(source.draw(shape), torch.randn(shape, generator=generator))


@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_a_stream_belongs_to_its_image_and_goes_on(rng: str) -> None:
    alone, first, other = (noise_source(rng, seed) for seed in (7, 7, 8))  # type: ignore[arg-type]
    one, two = alone.draw((4, 6, 6)), alone.draw((4, 6, 6))
    assert not torch.equal(one, two)
    assert not torch.equal(one, other.draw((4, 6, 6)))
    assert torch.equal(first.draw((4, 6, 6)), one)
    other.draw((4, 6, 6))
    assert torch.equal(first.draw((4, 6, 6)), two)


@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_it_is_unit_normal(rng: str) -> None:
    drawn = noise_source(rng, 3).draw((4, 128, 128)).double()  # type: ignore[arg-type]
    assert abs(drawn.mean().item()) < 5 / 256
    assert abs(drawn.var().item() - 1) < 5 * 2**0.5 / 256
    assert abs((drawn**4).mean().item() - 3) < 0.2


def test_initial_and_step_noise_are_one_stream_in_the_latents_shape_and_dtype() -> None:
    source, twin = noise_source("nv", 11), noise_source("nv", 11)
    x = initial_noise(source, (4, 5, 6))
    assert x.shape == (1, 4, 5, 6)
    assert torch.equal(x[0], twin.draw((4, 5, 6)))
    step = step_noise(source, x.double())(3.0, 2.0)
    assert step.dtype == torch.float64
    assert torch.equal(step, twin.draw((4, 5, 6)).double()[None])


def test_bad_seeds_and_sources_are_refused() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(RequestError, match="out of range"):
            noise_source("nv", seed)
    with pytest.raises(RequestError, match="there are nv, cpu"):
        noise_source("gpu", 0)  # type: ignore[arg-type]
