"""Deliberate mistakes in a seed's noise, the Brownian path and guidance, as in test_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from .test_mistakes import Rooms, copy, near

__all__ = ["copy"]  # the fixture

MISTAKES = [
    # file, what stands there, what is put instead
    ("brownian.py", "return int(sequence.generate_state(1)[0])", "return int(sequence.generate_state(2)[1])"),
    ("brownian.py", "pool_size=POOL", "pool_size=8"),
    ("brownian.py", "DIGITS = 6", "DIGITS = 3"),
    ("brownian.py", "self._node_seed((parent.index, parent.depth))", "self._node_seed((parent.depth, parent.index))"),
    ("brownian.py", "left = a * whole * inverse", "left = b * whole * inverse * 1.01"),
    ("brownian.py", "sqrt(a * b * inverse) * normal", "sqrt(a * inverse) * normal"),
    ("brownian.py", "self._remember((span.depth, first + 1), whole - left)", "self._remember((span.depth, first + 1), left)"),
    ("brownian.py", "* sqrt(high - low)", "* (high - low)"),
    ("brownian.py", "(increment if sigma_next > sigma else -increment)", "increment"),
    ("brownian.py", ".abs().sqrt()", ".abs()"),
    ("noise.py", "sigmas[sigmas > 0].float()", "sigmas.float()"),
    ("noise.py", "sigmas[sigmas > 0].float()", "sigmas[sigmas > 0]"),
    ("noise.py", "noise.norm(dim=1, keepdim=True)", "noise.norm(dim=2, keepdim=True)"),
    ("noise.py", "torch.sin((1 - strength) * omega)", "torch.sin(strength * omega)"),
    ("noise.py", "noise * strength + other * (1 - strength)", "noise * (1 - strength) + other * strength"),
    ("noise.py", "margin = (large - small) // 2", "margin = -((small - large) // 2)"),
    ("noise.py", "length = small + 2 * min(margin, 0)", "length = min(small, large)"),
    ("noise.py", "noise = self._fresh(seeding.seed).draw((shape[0], *size))", "noise = self._source.draw((shape[0], *size))"),
    ("noise.py", "(seeding.seed + seeding.ensd) %", "(seeding.ensd) %"),
    ("noise.py", "if seeding.ensd != 0:", "if False:"),
    ("noise.py", "self._source.draw((self._batch, *shape))[self._index]", "self._source.draw(shape)"),
    ("noise.py", "(seeding.seed + 1) % (MAX_SEED + 1) if", "seeding.seed if"),
    ("guidance.py", "call.number / calls <= self.skip_early", "call.number / calls < self.skip_early"),
    ("guidance.py", "if self.skip_early > 0 and", "if"),
    ("guidance.py", "call.number % 2 == 1", "call.number % 2 == 0"),
    ("guidance.py", "level < self.ngms", "level <= self.ngms"),
    ("guidance.py", "share = call.step / steps", "share = call.number / steps"),
    ("guidance.py", "(share >= self.stop", "(share > self.stop"),
    ("guidance.py", "min(step, len(self.scales) - 1)", "step % len(self.scales)"),
    ("guidance.py", "if acts else 1.0", "if acts else 0.0"),
    ("guidance.py", "base if acts else predictions[0]", "base if acts else predictions[-1]"),
    ("guidance.py", "phi * (guided * ratio) + (1 - phi) * guided", "(1 - phi) * (guided * ratio) + phi * guided"),
    ("guidance.py", "positive.std(dim=over, keepdim=True) /", "1 /"),
    ("guidance.py", "range(1, guided.ndim)", "range(2, guided.ndim)"),
]  # fmt: skip


def check(rooms: Rooms) -> None:
    check_path(rooms)
    check_seeding(rooms)
    check_guidance(rooms)


def check_path(rooms: Rooms) -> None:
    """torchsde 0.2.6, entropy 7, from 0.5 to 2; with W for its increments, noise is W / sqrt(step), downwards negative."""
    noise, like = rooms.noise, torch.zeros(1, 2)
    image = noise.ImageNoise(noise.Seeding(seed=7, rng="cpu"))
    step = image.between(like, torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=torch.float64), brownian=True)
    near(step(0.5, 2.0)[0] * 1.5**0.5, [-2.47631669, 3.01918793])
    near(step(1.3, 0.75)[0] * -(0.55**0.5), [-1.16725767, 0.856524527])
    # Levels as float32 holds them: this one is 12.345679 to 6 digits, and 12.345678 from float32.
    table = torch.tensor([12.3456786, 9.102928, 0.0291671582], dtype=torch.float64)
    step = image.between(like, table, brownian=True)
    near(step(9.102928, 5.0)[0], [2.33839607, -1.40779495])


def check_seeding(rooms: Rooms) -> None:
    """By the rules, from the plain draws of the sources, which have numbers of their own in test_mistakes.py."""
    noise, shape = rooms.noise, (1, 3, 3)

    def first(**named: Any) -> Tensor:
        drawn: Tensor = noise.ImageNoise(noise.Seeding(**named)).initial(shape)[0]
        return drawn

    low, high = (noise.noise_source("nv", seed).draw(shape).double() for seed in (1, 2))
    omega = torch.acos((low * high).sum(1) / (low.norm(dim=1) * high.norm(dim=1)))
    expected = (torch.sin(0.8 * omega) * low + torch.sin(0.2 * omega) * high) / torch.sin(omega)
    near(first(seed=1, variation_seed=2, variation_strength=0.2), expected, 1e-4)
    near(noise.slerp(0.2, low, 2 * low), 1.8 * low)
    small, large = (noise.noise_source("nv", 1).draw(size) for size in ((1, 2, 2), (1, 6, 6)))
    pasted = low.clone()
    pasted[:, 0:2, 0:2] = small
    near(first(seed=1, resize_from=(2, 2)), pasted)
    pasted = low.clone()
    pasted[:, 0:2, 0:2] = large[:, 2:4, 2:4]
    near(first(seed=1, resize_from=(6, 6)), pasted)
    like = torch.zeros(1, *shape)
    image = noise.ImageNoise(noise.Seeding(seed=1, ensd=2))
    near(image.initial(shape)[0], low)
    near(image.between(like, like, brownian=False)(2.0, 1.0)[0], noise.noise_source("nv", 3).draw(shape))
    image = noise.ImageNoise(noise.Seeding(seed=1, rng="cpu", compat="comfyui", index=1, batch=2))
    whole, later = (torch.randn((2, *shape), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    near(image.initial(shape)[0], whole[1])
    near(image.between(like, like, brownian=False)(2.0, 1.0)[0], later[1])


def check_guidance(rooms: Rooms) -> None:
    """By the rules, on three known predictions; which cond asks for which is told by its weight."""
    room = rooms.guidance
    first, second, base = torch.randn((3, 1, 2, 3, 3), generator=torch.Generator().manual_seed(0)).double()
    known = {1.0: first, 0.5: second, -1.0: base}

    class Denoiser:
        def predict(self, x: Tensor, sigma: float, conds: Any) -> list[Any]:
            return [known[one.weight] for one in conds]

    conds = [rooms.denoiser.Cond(torch.zeros(1), weight=weight) for weight in (1.0, 0.5)]
    uncond = rooms.denoiser.Cond(torch.zeros(1), weight=-1.0)

    def made(step: int, number: int, sigma: float = 3.0, **named: Any) -> Tensor:
        denoise = room.guide(Denoiser(), conds, uncond, room.Guidance(**named), steps=10, calls=20)
        x0: Tensor = denoise(room.Call(first, sigma, step, False, number)).x0
        return x0

    def at(scale: float) -> Tensor:
        guided: Tensor = base + scale * (first - base) + 0.5 * scale * (second - base)
        return guided

    skipped = first + 0.5 * (second - first)
    near(made(0, 0), at(7.0))
    for step, number, options in [
        (3, 6, {"skip_early": 0.3}),
        (1, 3, {"ngms": 3.1}),
        (1, 3, {"start": 0.2}),
        (5, 9, {"stop": 0.5}),
    ]:
        near(made(step, number, **options), skipped)
    for step, number, options in [
        (3, 7, {"skip_early": 0.3}),
        (2, 4, {"ngms": 3.1}),
        (1, 3, {"ngms": 3.0}),
        (2, 1, {"start": 0.2}),
    ]:
        near(made(step, number, **options), at(7.0))
    near(made(6, 5, scales=(3.0, 4.0)), at(4.0))
    guided, positive = at(7.0), at(1.0)
    near(made(0, 0, rescale=0.3), guided * (0.7 + 0.3 * positive.std() / guided.std()), 1e-9)


def test_the_check_passes_on_the_package_as_it_is(copy: Callable[[str, str, str], Rooms]) -> None:
    check(copy("guidance.py", "guided = base\n", "guided = base + 0\n"))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[0]}: {row[2]}")
def test_a_mistake_is_noticed(mistake: tuple[str, str, str], copy: Callable[[str, str, str], Rooms]) -> None:
    rooms = copy(*mistake)
    with pytest.raises(AssertionError):
        check(rooms)
