from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.noise import ImageNoise, Rng, Seeding, initial_noise, noise_source, slerp, step_noise

Corners = tuple[tuple[int, int], tuple[int, int]]

RNGS: tuple[Rng, ...] = ("nv", "cpu")
SHAPE = (4, 5, 6)
LIKE = torch.zeros(1, *SHAPE, dtype=torch.float64)
SIGMAS = torch.tensor([5.0, 3.0, 1.0, 0.5, 0.0], dtype=torch.float64)

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
def test_a_stream_belongs_to_its_image_and_goes_on(rng: Rng) -> None:
    alone, first, other = (noise_source(rng, seed) for seed in (7, 7, 8))
    one, two = alone.draw((4, 6, 6)), alone.draw((4, 6, 6))
    assert not torch.equal(one, two)
    assert not torch.equal(one, other.draw((4, 6, 6)))
    assert torch.equal(first.draw((4, 6, 6)), one)
    other.draw((4, 6, 6))
    assert torch.equal(first.draw((4, 6, 6)), two)


@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_it_is_unit_normal(rng: Rng) -> None:
    drawn = noise_source(rng, 3).draw((4, 128, 128)).double()
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
    with pytest.raises(RequestError, match="'cuda' is unknown; there are nv, cpu, gpu"):
        noise_source("cuda", 0)  # type: ignore[arg-type]


def test_the_gpus_source_is_refused_on_the_cpu() -> None:
    with pytest.raises(RequestError, match=r"gpu needs a CUDA device .* nv gives the same numbers"):
        noise_source("gpu", 0)
    with pytest.raises(RequestError, match="gpu needs a CUDA device"):
        ImageNoise(Seeding(seed=0, rng="gpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpus_source_is_torchs_generator_on_the_device_and_nv_gives_the_same() -> None:
    device = torch.device("cuda")
    drawn, nv = noise_source("gpu", 7, device), noise_source("nv", 7)
    generator = torch.Generator(device).manual_seed(7)
    for _ in range(2):
        got = drawn.draw(SHAPE)
        assert torch.equal(got, torch.randn(SHAPE, generator=generator, device=device))
        torch.testing.assert_close(got.cpu(), nv.draw(SHAPE), rtol=1e-5, atol=1e-5)


def first(seed: int, shape: tuple[int, int, int] = SHAPE, rng: Rng = "nv") -> Tensor:
    """The first noise of a seed alone."""
    return noise_source(rng, seed).draw(shape)


def test_without_options_the_first_noise_and_the_steps_are_the_seeds_stream() -> None:
    for rng in RNGS:
        image, source = ImageNoise(Seeding(seed=11, rng=rng)), noise_source(rng, 11)
        assert torch.equal(image.initial(SHAPE)[0], source.draw(SHAPE))
        noise = image.between(LIKE, SIGMAS, brownian=False)
        for sigma, sigma_next in [(5.0, 3.0), (3.0, 1.0)]:
            step = noise(sigma, sigma_next)
            assert step.dtype == torch.float64
            assert torch.equal(step[0], source.draw(SHAPE).double())


def test_a_variation_is_a_slerp_of_the_columns() -> None:
    """AUTOMATIC1111: norms over dim 1 of (channels, h, w), so every column along h has its own angle."""
    image = ImageNoise(Seeding(seed=1, variation_seed=2, variation_strength=0.3))
    got = image.initial(SHAPE)[0].double()
    low, high = first(1).double(), first(2).double()
    for channel in range(SHAPE[0]):
        for column in range(SHAPE[2]):
            a, b = low[channel, :, column].numpy(), high[channel, :, column].numpy()
            omega = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            expected = (np.sin(0.7 * omega) * a + np.sin(0.3 * omega) * b) / np.sin(omega)
            np.testing.assert_allclose(got[channel, :, column].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_variations_ends_are_the_two_seeds() -> None:
    none = ImageNoise(Seeding(seed=1, variation_seed=2)).initial(SHAPE)[0]
    assert torch.equal(none, first(1))
    whole = ImageNoise(Seeding(seed=1, variation_seed=2, variation_strength=1.0)).initial(SHAPE)[0]
    torch.testing.assert_close(whole, first(2), rtol=1e-5, atol=1e-5)
    zero = ImageNoise(Seeding(seed=1, variation_seed=0, variation_strength=1.0)).initial(SHAPE)[0]
    torch.testing.assert_close(zero, first(0), rtol=1e-5, atol=1e-5)
    with pytest.raises(RequestError, match="needs a variation seed"):
        ImageNoise(Seeding(seed=1, variation_strength=0.5))


def test_all_but_parallel_noises_are_mixed_linearly_by_the_share_of_the_first() -> None:
    low = first(1)
    torch.testing.assert_close(slerp(0.2, low, low * 2), low * 1.8)
    assert torch.isfinite(ImageNoise(Seeding(seed=4, variation_seed=4, variation_strength=0.5)).initial(SHAPE)).all()
    nearly = low + 0.2 * first(2)  # a mean cosine of 0.98: still on the sphere
    assert not torch.allclose(slerp(0.2, low, nearly), low * 0.2 + nearly * 0.8, atol=1e-3)


def test_steps_go_on_after_one_draw_whatever_the_variation() -> None:
    varied = ImageNoise(Seeding(seed=1, variation_seed=2, variation_strength=0.3))
    resized = ImageNoise(Seeding(seed=1, resize_from=(3, 4), variation_seed=2, variation_strength=0.3))
    source = noise_source("nv", 1)
    source.draw(SHAPE)
    second = source.draw(SHAPE).double()
    for image in (varied, resized):
        image.initial(SHAPE)
        assert torch.equal(image.between(LIKE, SIGMAS, brownian=False)(2.0, 1.0)[0], second)


@pytest.mark.parametrize(
    ("size", "to", "cut"),
    [
        # old (h, w); rows and columns that it takes in the new (8, 9); rows and columns of it that stand there
        ((4, 5), ((2, 6), (2, 7)), ((0, 4), (0, 5))),
        ((5, 4), ((1, 6), (2, 6)), ((0, 5), (0, 4))),
        ((12, 9), ((0, 8), (0, 9)), ((2, 10), (0, 9))),
        ((8, 13), ((0, 8), (0, 9)), ((0, 8), (2, 11))),
        ((11, 12), ((0, 7), (0, 8)), ((2, 9), (2, 10))),  # -3 // 2 is -2: a row and a column are not covered
        ((12, 5), ((0, 8), (2, 7)), ((2, 10), (0, 5))),
    ],
)
@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_seed_resize_pastes_the_old_noise_in_the_middle_of_the_new(
    size: tuple[int, int], to: Corners, cut: Corners, rng: Rng
) -> None:
    """AUTOMATIC1111: both are the first draw of the same seed, at the old size and at the new."""
    expected = first(3, (4, 8, 9), rng)
    (top, bottom), (left, right) = to
    (cut_top, cut_bottom), (cut_left, cut_right) = cut
    expected[:, top:bottom, left:right] = first(3, (4, *size), rng)[:, cut_top:cut_bottom, cut_left:cut_right]
    got = ImageNoise(Seeding(seed=3, rng=rng, resize_from=size)).initial((4, 8, 9))
    assert torch.equal(got[0], expected)


def test_seed_resize_to_the_same_size_changes_nothing_and_a_variation_is_made_before_it() -> None:
    same = ImageNoise(Seeding(seed=3, resize_from=SHAPE[1:])).initial(SHAPE)[0]
    assert torch.equal(same, first(3))
    both = Seeding(seed=3, resize_from=(2, 2), variation_seed=8, variation_strength=0.4)
    expected = first(3)
    expected[:, 1:3, 2:4] = slerp(0.4, first(3, (4, 2, 2)), first(8, (4, 2, 2)))
    assert torch.equal(ImageNoise(both).initial(SHAPE)[0], expected)


@pytest.mark.parametrize(("seed", "ensd", "sum_"), [(5, 31337, 31342), (2**64 - 1, 31337, 31336), (5, -7, 2**64 - 2)])
@pytest.mark.parametrize("rng", ["nv", "cpu"])
def test_ensd_begins_a_new_stream_after_the_first_noise(seed: int, ensd: int, sum_: int, rng: Rng) -> None:
    image, anew = ImageNoise(Seeding(seed=seed, rng=rng, ensd=ensd)), noise_source(rng, sum_)
    assert torch.equal(image.initial(SHAPE)[0], first(seed, rng=rng))
    noise = image.between(LIKE, SIGMAS, brownian=False)
    for _ in range(2):
        assert torch.equal(noise(2.0, 1.0)[0], anew.draw(SHAPE).double())


def test_comfyui_draws_one_noise_for_the_batch_and_the_steps_from_the_next_seed() -> None:
    whole = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(21))
    generator = torch.Generator().manual_seed(22)
    steps = [torch.randn((3, *SHAPE), generator=generator) for _ in range(2)]
    for index in range(3):
        image = ImageNoise(Seeding(seed=21, rng="cpu", compat="comfyui", index=index, batch=3))
        assert torch.equal(image.initial(SHAPE), whole[index : index + 1])
        noise = image.between(LIKE.float(), SIGMAS, brownian=False)
        for step in steps:
            assert torch.equal(noise(2.0, 1.0), step[index : index + 1])
    last = ImageNoise(Seeding(seed=2**64 - 1, rng="cpu", compat="comfyui"))
    last.initial(SHAPE)
    assert torch.equal(last.between(LIKE.float(), SIGMAS, brownian=False)(2.0, 1.0)[0], first(0, rng="cpu"))


def test_comfyuis_brownian_tree_is_the_batchs() -> None:
    torchsde = pytest.importorskip("torchsde", reason="torchsde is not installed")
    tree = torchsde.BrownianTree(0.5, torch.zeros(2, *SHAPE), 5.0, entropy=21)
    for index in range(2):
        image = ImageNoise(Seeding(seed=21, rng="cpu", compat="comfyui", index=index, batch=2))
        got = image.between(LIKE.float(), SIGMAS, brownian=True)(3.0, 1.0)
        assert torch.equal(got, -tree(1.0, 3.0)[index : index + 1] / torch.tensor(2.0).sqrt())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rng": "nv"}, "comes from the source cpu, not nv"),
        ({"ensd": 31337}, "knows no ensd;"),
        ({"variation_seed": 3, "variation_strength": 0.1, "resize_from": (4, 4)}, "knows no variation, seed resize;"),
        ({"index": 2, "batch": 2}, "image 2 is not in a batch of 2"),
        ({"seed": -1}, "seed -1 is out of range"),
    ],
)
def test_what_comfyui_does_not_know_is_refused(changed: dict[str, Any], said: str) -> None:
    seeding = replace(Seeding(seed=1, rng="cpu", compat="comfyui"), **changed)
    with pytest.raises(RequestError, match=said):
        ImageNoise(seeding)
