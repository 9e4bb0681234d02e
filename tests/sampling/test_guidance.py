"""Guidance: the combination against the papers' formulas, and when the negative prompt is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
import torch
from torch import Tensor

from avila_diffusion.errors import RequestError
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.guidance import Call, Denoised, Guidance, classifier_free_guidance, guide, rescaled
from avila_diffusion.sampling.schedules import NoiseTable

X = torch.randn((1, 4, 6, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STEPS = 10


def cond(value: float, weight: float = 1.0) -> Cond:
    return Cond(torch.full((1, 77, 3), value, dtype=torch.float64), weight=weight)


POSITIVE, SECOND, NEGATIVE = cond(0.5), cond(0.1, weight=0.6), cond(-0.2)


class Bench:
    """A denoiser on a formula for a network, and how many predictions each call to the network asked for."""

    def __init__(self, table: NoiseTable, dtype: torch.dtype = torch.float64) -> None:
        self.asked: list[int] = []
        self.denoiser = Denoiser(self.network, table, "epsilon", dtype)

    def network(self, x: Tensor, t: Tensor, context: Tensor, **_: object) -> Tensor:
        self.asked.append(len(x))
        return (
            0.9 * torch.tanh(x + context.mean((1, 2), keepdim=True)[..., None]) + 0.1 * (t / 1000)[:, None, None, None]
        )

    def x0(self, conds: Sequence[Cond], x: Tensor = X, sigma: float = 3.0) -> list[Tensor]:
        """The predictions of all, in one batch."""
        found = self.denoiser.predict(x, sigma, conds)
        self.asked.clear()
        return found

    def guided(
        self,
        guidance: Guidance,
        conds: Cond | Sequence[Cond] = POSITIVE,
        *,
        step: int = 0,
        number: int = 0,
        sigma: float = 3.0,
        calls: int | None = None,
        want_uncond: bool = False,
        uncond: Cond | None = NEGATIVE,
    ) -> Denoised:
        denoise = guide(self.denoiser, conds, uncond, guidance, steps=STEPS, calls=calls)
        return denoise(Call(X, sigma, step, want_uncond, number))


@pytest.fixture
def bench(table: NoiseTable) -> Bench:
    return Bench(table)


def acting(
    bench: Bench, guidance: Guidance, calls: int | None = None, sigma: float = 3.0, a_step: int = 1
) -> list[int]:
    """The numbers of the calls of a run whose negative prompt was evaluated; `a_step` calls are made a step."""
    found = []
    for number in range(STEPS * a_step):
        bench.asked.clear()
        bench.guided(guidance, step=number // a_step, number=number, calls=calls, sigma=sigma)
        assert bench.asked in ([1], [2])
        if bench.asked == [2]:
            found.append(number)
    return found


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_its_defaults_it_is_plain_guidance_to_the_bit(table: NoiseTable, dtype: torch.dtype) -> None:
    bench, x = Bench(table, dtype), X.to(dtype)
    for number, scale in enumerate([7.0, 1.5, 0.0]):
        first, second, base = bench.x0([POSITIVE, SECOND, NEGATIVE], x)
        guidance = Guidance(scale=scale)
        call = Call(x, 3.0, number, number=number)
        got = guide(bench.denoiser, [POSITIVE, SECOND], NEGATIVE, guidance, steps=STEPS)(call)
        assert torch.equal(got.x0, base + scale * (first - base) + 0.6 * scale * (second - base))
        assert got.uncond is not None
        assert torch.equal(got.uncond, base)
        brief = classifier_free_guidance(bench.denoiser, [POSITIVE, SECOND], NEGATIVE, scale)(call)
        assert torch.equal(brief.x0, got.x0)
    assert acting(bench, Guidance()) == list(range(STEPS))
    assert Guidance().scale == 7


def test_scale_one_does_not_evaluate_what_cancels_out(bench: Bench) -> None:
    [positive] = bench.x0([POSITIVE])
    got = bench.guided(Guidance(scale=1.0, rescale=0.7))
    assert bench.asked == [1]
    assert got.uncond is None
    assert torch.equal(got.x0, positive)
    bench.asked.clear()
    bench.guided(Guidance(scale=1.0), [POSITIVE, SECOND])
    assert bench.asked == [3]


def test_the_interval_is_a_share_of_the_steps(bench: Bench) -> None:
    """Kynkaanniemi et al. 2024: outside, the prompt alone. From step 3 of 10 to before step 7."""
    guidance = Guidance(start=0.3, stop=0.7)
    assert acting(bench, guidance) == [3, 4, 5, 6]
    assert acting(bench, guidance, a_step=2) == [6, 7, 8, 9, 10, 11, 12, 13]
    assert acting(bench, Guidance(start=0.95)) == []
    [positive] = bench.x0([POSITIVE])
    assert torch.equal(bench.guided(guidance, step=2).x0, positive)
    assert bench.guided(guidance, step=2).uncond is None


def test_an_interval_to_the_end_has_no_end(bench: Bench) -> None:
    """An adaptive sampler may take more steps than were counted."""
    bench.guided(Guidance(), step=3 * STEPS)
    assert bench.asked == [2]


def test_scales_are_one_a_step_and_the_last_goes_on(bench: Bench) -> None:
    guidance = Guidance(scale=99.0, scales=(9.0, 4.0, 1.0, 3.0))
    positive, base = bench.x0([POSITIVE, NEGATIVE])
    for step, scale in enumerate([9.0, 4.0, 1.0, 3.0, 3.0, 3.0]):
        close(bench.guided(guidance, step=step, number=2 * step).x0, base + scale * (positive - base))
    assert acting(bench, guidance) == [0, 1, 3, 4, 5, 6, 7, 8, 9]


def test_rescaling_is_the_papers_formula(bench: Bench) -> None:
    """Lin et al. 2023, equations 14 to 16, on x0."""
    positive, base = bench.x0([POSITIVE, NEGATIVE])
    for phi in (0.3, 0.7, 1.0):
        guided = base + 7 * (positive - base)
        expected = phi * guided * (positive.std() / guided.std()) + (1 - phi) * guided
        close(bench.guided(Guidance(scale=7.0, rescale=phi)).x0, expected)
    assert abs(bench.guided(Guidance(rescale=1.0)).x0.std().item() - positive.std().item()) < 1e-12


def test_rescaling_is_diffusers_over_each_picture_of_a_batch() -> None:
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    generator = torch.Generator().manual_seed(5)
    guided, positive = (torch.randn((3, 4, 5, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    guided = guided * torch.tensor([1.0, 5.0, 9.0])[:, None, None, None] + 0.4
    for phi in (0.0, 0.4, 1.0):
        close(rescaled(guided, positive, phi), module.rescale_noise_cfg(guided, positive, guidance_rescale=phi))


def test_rescaling_several_prompts_takes_what_they_are_at_scale_one(bench: Bench) -> None:
    first, second, base = bench.x0([POSITIVE, SECOND, NEGATIVE])
    guided = base + 7 * (first - base) + 4.2 * (second - base)
    positive = base + (first - base) + 0.6 * (second - base)
    got = bench.guided(Guidance(scale=7.0, rescale=0.7), [POSITIVE, SECOND]).x0
    close(got, 0.7 * guided * (positive.std() / guided.std()) + 0.3 * guided)
    # Weights of which the scale makes 1: the negative prompt cancels out of the sum, and not of its scale.
    halves = [cond(0.5, weight=0.25), cond(0.1, weight=0.25)]
    first, second, base = bench.x0([*halves, NEGATIVE])
    guided, positive = (first + second) / 2, base + 0.25 * (first - base) + 0.25 * (second - base)
    got = bench.guided(Guidance(scale=2.0, rescale=1.0), halves).x0
    close(got, guided * (positive.std() / guided.std()))


def test_early_calls_skip_the_negative_prompt(bench: Bench) -> None:
    """AUTOMATIC1111: call / total <= share, and a share of 0 skips not even the first."""
    assert acting(bench, Guidance(skip_early=0.3)) == [4, 5, 6, 7, 8, 9]
    assert acting(bench, Guidance(skip_early=0.29)) == [3, 4, 5, 6, 7, 8, 9]
    assert acting(bench, Guidance(skip_early=0.0)) == list(range(STEPS))
    assert acting(bench, Guidance(skip_early=1.0)) == []
    # Second-order samplers are counted as two calls a step.
    assert acting(bench, Guidance(skip_early=0.3), calls=20, a_step=2) == list(range(7, 20))


def test_below_a_level_every_second_call_skips_it_or_all(bench: Bench) -> None:
    """AUTOMATIC1111's NGMS: sigma < level, in calls of odd number."""
    assert acting(bench, Guidance(ngms=3.1)) == [0, 2, 4, 6, 8]
    assert acting(bench, Guidance(ngms=3.1, ngms_all=True)) == []
    assert acting(bench, Guidance(ngms=3.0, ngms_all=True)) == list(range(STEPS))
    assert acting(bench, Guidance(ngms=0.0, ngms_all=True), sigma=0.03) == list(range(STEPS))
    # The call counts, not the step.
    assert acting(bench, Guidance(ngms=3.1), a_step=2) == list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("guidance", "number"),
    [
        (Guidance(scale=7.0, skip_early=0.5), 2),
        (Guidance(scale=7.0, ngms=inf), 3),
        (Guidance(scale=7.0, start=0.9), 4),
        (Guidance(scale=7.0, ngms=inf, rescale=0.7), 5),
    ],
)
def test_where_it_does_not_act_the_first_prompt_stands_for_the_negative_one(
    bench: Bench, guidance: Guidance, number: int
) -> None:
    """AUTOMATIC1111: scale 1, and the first cond's prediction in the place of uncond's."""
    third = cond(0.8, weight=-0.4)
    first, second, other = bench.x0([POSITIVE, SECOND, third])
    got = bench.guided(guidance, [POSITIVE, SECOND, third], number=number)
    assert bench.asked == [3]
    assert got.uncond is None
    close(got.x0, first + 0.6 * (second - first) - 0.4 * (other - first))
    [alone] = bench.x0([SECOND])
    assert torch.equal(bench.guided(guidance, SECOND, number=number).x0, alone)


def test_a_constant_picture_is_rescaled_to_itself() -> None:
    for value in (0.0, 0.3, 0.5):
        flat = torch.full((1, 4, 2, 2), value)
        torch.testing.assert_close(rescaled(flat, torch.rand(1, 4, 2, 2), 0.7), flat)


def test_a_sampler_that_wants_uncond_gets_what_stands_for_it(bench: Bench) -> None:
    """AUTOMATIC1111 gives CFG++ the first cond's prediction where it skips the negative prompt, and does not make that."""
    first, second = bench.x0([POSITIVE, SECOND])
    for guidance in (Guidance(ngms=inf), Guidance(start=0.5), Guidance(skip_early=0.5)):
        got = bench.guided(guidance, [POSITIVE, SECOND], number=1, want_uncond=True)
        assert bench.asked == [2]
        assert got.uncond is not None
        assert torch.equal(got.uncond, first)
        close(got.x0, first + 0.6 * (second - first))
        bench.asked.clear()
    one = bench.guided(Guidance(scale=1.0), want_uncond=True)
    assert one.uncond is not None
    assert torch.equal(one.uncond, bench.x0([POSITIVE, NEGATIVE])[1])


def test_a_missing_negative_prompt_is_missed_only_where_it_is_needed(bench: Bench) -> None:
    guidance = Guidance(scale=6.5, start=0.5)
    bench.guided(guidance, step=4, uncond=None)
    with pytest.raises(RequestError, match=r"guidance scale 6\.5 needs a negative conditioning"):
        bench.guided(guidance, step=5, uncond=None)
    with pytest.raises(RequestError, match="this sampler needs a negative conditioning at any guidance scale"):
        bench.guided(Guidance(scale=1.0), uncond=None, want_uncond=True)
