from __future__ import annotations

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avila_diffusion.config import NoiseConfig, Prediction
from avila_diffusion.errors import NotFinite, RequestError
from avila_diffusion.sampling.denoiser import Cond, Denoiser
from avila_diffusion.sampling.guidance import Call, classifier_free_guidance
from avila_diffusion.sampling.schedules import NoiseTable


class Recorder:
    """A network that notes what it is called with and answers a row-wise function of it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Tensor | tuple[Tensor, ...] | None]] = []

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *,
        vector: Tensor | None = None,
        guidance: Tensor | None = None,
        control: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        self.calls.append(
            {"x": x, "t": t, "context": context, "vector": vector, "guidance": guidance, "control": control}
        )
        out = (
            torch.tanh(x[:, :4]) + context.mean((1, 2)).reshape(-1, 1, 1, 1) + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1e3
        )
        if vector is not None:
            out = out * (1 + vector.sum(1).reshape(-1, 1, 1, 1))
        return out if control is None else out + control[0]


def cond(tokens: int = 77, value: float = 0.0, **more: object) -> Cond:
    return Cond(torch.full((1, tokens, 3), value, dtype=torch.float64), **more)  # type: ignore[arg-type]


def latents(seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(1, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def network() -> Recorder:
    return Recorder()


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """The true x0 of data N(0.3, 0.7^2)."""
    return (0.49 * x + sigma**2 * 0.3) / (0.49 + sigma**2)


def gaussian_network(prediction: Prediction, table: NoiseTable) -> Callable[..., Tensor]:
    """A network that predicts its own target exactly, from the definitions in the variance-preserving process."""

    def epsilon_or_v(*, x: Tensor, t: Tensor, **_: object) -> Tensor:
        sigma = float(table.t_to_sigma(float(t[0])))
        alpha, spread = 1 / sqrt(1 + sigma**2), sigma / sqrt(1 + sigma**2)  # x = alpha x0 + spread eps
        x0 = gaussian(x / alpha, sigma)
        eps = (x - alpha * x0) / spread
        return eps if prediction == "epsilon" else alpha * eps - spread * x0

    def edm(*, x: Tensor, t: Tensor, **_: object) -> Tensor:
        sigma, data = float(torch.exp(4 * t[0].double())), table.sigma_data
        noisy = x * sqrt(sigma**2 + data**2)
        skip, out = data**2 / (sigma**2 + data**2), sigma * data / sqrt(sigma**2 + data**2)  # Karras et al., table 1
        return (gaussian(noisy, sigma) - skip * noisy) / out

    return edm if prediction == "edm" else epsilon_or_v


@pytest.mark.parametrize("sigma", [0.03, 0.5, 1.0, 3.3, 14.6])
@pytest.mark.parametrize("prediction", ["epsilon", "v", "edm"])
def test_every_prediction_type_tells_the_same_x0(prediction: Prediction, sigma: float) -> None:
    table = NoiseTable.from_config(NoiseConfig(prediction=prediction))
    x = latents(1, 1 + sigma)
    denoiser = Denoiser(gaussian_network(prediction, table), table, prediction, torch.float64)
    torch.testing.assert_close(denoiser.predict(x, sigma, [cond()])[0], gaussian(x, sigma), rtol=1e-10, atol=1e-10)


def test_zero_terminal_snr_is_finite_and_exact_at_the_top() -> None:
    table = NoiseTable.from_config(NoiseConfig(prediction="v", zero_terminal_snr=True))
    x = latents(2, table.sigma_max)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-6)):
        denoiser = Denoiser(gaussian_network("v", table), table, "v", dtype)
        [x0] = denoiser.predict(x.to(dtype), table.sigma_max, [cond()])
        assert x0.dtype == dtype
        torch.testing.assert_close(x0.double(), gaussian(x, table.sigma_max), rtol=tolerance, atol=tolerance)


def test_the_network_is_told_the_scaled_latents_and_a_fractional_timestep(network: Recorder, table: NoiseTable) -> None:
    x = latents()
    Denoiser(network, table, "epsilon", torch.float64).predict(x, 1.0, [cond()])
    [call] = network.calls
    torch.testing.assert_close(call["x"], x / sqrt(2), rtol=1e-14, atol=0)
    # k-diffusion's value for sigma 1, between two timesteps.
    torch.testing.assert_close(call["t"], torch.tensor([353.89041059493974], dtype=torch.float64), rtol=1e-12, atol=0)
    assert call["vector"] is call["guidance"] is call["control"] is None


def test_conds_of_equal_length_share_a_call_and_others_do_not(network: Recorder, table: NoiseTable) -> None:
    conds = [cond(77, 0.1), cond(154, 0.2), cond(77, 0.3), cond(77, 0.4, vector=torch.ones(1, 2, dtype=torch.float64))]
    denoiser = Denoiser(network, table, "epsilon", torch.float64)
    together = denoiser.predict(latents(), 2.0, conds)
    assert [call["context"].shape for call in network.calls] == [(2, 77, 3), (1, 154, 3), (1, 77, 3)]  # type: ignore[union-attr]
    context = network.calls[0]["context"]
    assert isinstance(context, Tensor)
    assert context[:, 0, 0].tolist() == [0.1, 0.3]
    for one, alone in zip(together, conds, strict=True):
        assert one.shape == (1, 4, 5, 6)
        torch.testing.assert_close(one, denoiser.predict(latents(), 2.0, [alone])[0], rtol=1e-14, atol=1e-14)


def test_all_inputs_reach_the_network_in_its_dtype(network: Recorder, table: NoiseTable) -> None:
    one = cond(
        vector=torch.full((1, 2), 0.5, dtype=torch.float64),
        concat=torch.full((1, 5, 5, 6), 9.0),
        control=(torch.ones(1, 4, 5, 6), torch.ones(1, 4, 1, 1)),
    )
    x = latents().float()
    denoiser = Denoiser(network, table, "epsilon", torch.bfloat16, guidance=8.0)
    [first, second] = denoiser.predict(x, 999.0, [one, one])
    [call] = network.calls
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    joined, control = call["x"], call["control"]
    assert isinstance(joined, Tensor)
    assert isinstance(control, tuple)
    assert joined.shape == (2, 9, 5, 6)
    assert (joined[:, 4:] == 9.0).all()  # joined unscaled
    for name in ("x", "context", "vector"):
        assert call[name].dtype == torch.bfloat16  # type: ignore[union-attr]
    assert [(part.shape[0], part.dtype) for part in control] == [(2, torch.bfloat16)] * 2
    # bfloat16 would make 999 into 1000
    assert call["t"].dtype == call["guidance"].dtype == torch.float32  # type: ignore[union-attr]
    assert call["t"].tolist() == [999.0, 999.0]  # type: ignore[union-attr]
    assert call["guidance"].tolist() == [8.0, 8.0]  # type: ignore[union-attr]


def test_what_is_not_finite_is_said(table: NoiseTable) -> None:
    def broken(x: Tensor, t: Tensor, context: Tensor, **_: object) -> Tensor:
        return x / 0 * 0

    denoiser = Denoiser(broken, table, "epsilon")
    with pytest.raises(NotFinite, match=r"NaN or infinity at sigma 2 in torch\.float32"):
        denoiser.predict(latents().float(), 2.0, [cond()])


def test_guidance_is_uncond_plus_scaled_difference(network: Recorder, table: NoiseTable) -> None:
    denoiser = Denoiser(network, table, "epsilon", torch.float64)
    x, positive, negative = latents(), cond(77, 0.5), cond(154, -0.2)
    [x0, base] = denoiser.predict(x, 3.0, [positive, negative])
    guided = classifier_free_guidance(denoiser, positive, negative, 7.5)(Call(x, 3.0, 0))
    torch.testing.assert_close(guided.x0, 7.5 * x0 - 6.5 * base, rtol=1e-12, atol=1e-12)
    assert guided.uncond is not None
    torch.testing.assert_close(guided.uncond, base, rtol=1e-12, atol=1e-12)


def test_several_prompts_are_weighed(network: Recorder, table: NoiseTable) -> None:
    denoiser = Denoiser(network, table, "epsilon", torch.float64)
    x, conds, negative = latents(), (cond(77, 0.5, weight=0.8), cond(77, 0.1, weight=-0.3)), cond(77, -0.2)
    [first, second, base] = denoiser.predict(x, 3.0, [*conds, negative])
    guided = classifier_free_guidance(denoiser, conds, negative, 7.0)(Call(x, 3.0, 0))
    expected = base + 5.6 * (first - base) - 2.1 * (second - base)
    torch.testing.assert_close(guided.x0, expected, rtol=1e-12, atol=1e-12)
    assert [len(call["x"]) for call in network.calls] == [3, 3]  # type: ignore[arg-type]


def test_scale_one_asks_for_the_prompt_alone(network: Recorder, table: NoiseTable) -> None:
    denoiser = Denoiser(network, table, "epsilon", torch.float64)
    x, positive, negative = latents(), cond(77, 0.5), cond(77, -0.2)
    for uncond in (negative, None):
        guided = classifier_free_guidance(denoiser, positive, uncond, 1.0)(Call(x, 3.0, 0))
        assert guided.uncond is None
        assert torch.equal(guided.x0, denoiser.predict(x, 3.0, [positive])[0])
    halves = (cond(77, 0.5, weight=0.5), cond(77, 0.1, weight=0.5))
    mixed = classifier_free_guidance(denoiser, halves, None, 1.0)(Call(x, 3.0, 0)).x0
    torch.testing.assert_close(mixed, sum(denoiser.predict(x, 3.0, halves)) / 2, rtol=1e-12, atol=1e-12)
    wanted = classifier_free_guidance(denoiser, positive, negative, 1.0)(Call(x, 3.0, 0, want_uncond=True))
    assert wanted.uncond is not None
    assert torch.equal(wanted.uncond, denoiser.predict(x, 3.0, [positive, negative])[1])
    with pytest.raises(RequestError, match="needs a negative conditioning"):
        classifier_free_guidance(denoiser, positive, None, 7.0)(Call(x, 3.0, 0))


def test_comfyui_asks_about_the_nearest_whole_timestep(table: NoiseTable) -> None:
    """Against timesteps recorded from ComfyUI, and through a call."""
    recorded = json.loads((Path(__file__).parent / "comfyui_schedules.json").read_text(encoding="utf-8"))["timestep"]
    told: list[float] = []

    def network(x: Tensor, t: Tensor, context: Tensor, **_: object) -> Tensor:
        told.append(t.item())
        return x

    for whole in (True, False):
        denoiser = Denoiser(network, table, "epsilon", torch.float64, whole_timesteps=whole)
        for sigma in recorded:
            denoiser.predict(torch.ones(1, 4, 2, 2, dtype=torch.float64), float(sigma), [Cond(torch.zeros(1, 1, 1))])
    assert told[: len(recorded)] == list(recorded.values())
    assert 0 < max(abs(one - two) for one, two in zip(told, told[len(recorded) :], strict=False)) < 0.51


def test_what_conds_have_in_common_reaches_a_network_that_shares_once(network: Recorder, table: NoiseTable) -> None:
    vector, mask = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, 5, 6, dtype=torch.float64)
    alike = [cond(77, 0.1, vector=vector, concat=mask), cond(77, 0.3, vector=vector, concat=mask)]
    unlike = [cond(77, 0.1, vector=vector, concat=mask), cond(77, 0.3, vector=vector * 2, concat=mask * 0)]
    for conds, shared in ((alike, 1), (unlike, 2)):
        network.calls.clear()
        apart = Denoiser(network, table, "epsilon", torch.float64).predict(latents(), 2.0, conds)
        once = Denoiser(network, table, "epsilon", torch.float64, guidance=3.0, shares=True)
        with torch.no_grad():
            found = [once.predict(latents(), 2.0, conds) for _ in range(2)]
        for predicted in found:
            torch.testing.assert_close(predicted, apart, rtol=1e-14, atol=1e-14)
        whole, first, second = network.calls
        assert [len(whole[name]) for name in ("x", "t", "context", "vector")] == [2] * 4  # type: ignore[arg-type]
        lengths = [len(first[name]) for name in ("x", "t", "context", "vector", "guidance")]  # type: ignore[arg-type]
        assert lengths == [shared, 1, 2, shared, 1]
        assert first["context"] is second["context"], "a network knows the same conds by the same tensor"


def test_contexts_are_joined_anew_where_conds_differ_or_were_written_to(network: Recorder, table: NoiseTable) -> None:
    denoiser = Denoiser(network, table, "epsilon", torch.float64, shares=True)
    first, second, base = cond(77, 0.1), cond(77, 0.2), cond(77, 0.3)

    def told(*conds: Cond) -> list[float]:
        denoiser.predict(latents(), 2.0, conds)
        context = network.calls[-1]["context"]
        assert isinstance(context, Tensor)
        return context[:, 0, 0].tolist()

    with torch.no_grad():
        for _ in range(2):  # a schedule that alternates
            assert told(first, base) == [0.1, 0.3]
            assert told(second, base) == [0.2, 0.3]
            assert told(base, first) == [0.3, 0.1]
            assert told(first) == [0.1]
        first.context.fill_(0.5)
        assert told(first, base) == [0.5, 0.3]
