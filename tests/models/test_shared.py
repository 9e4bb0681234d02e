"""What the conds of a call have in common is computed once, texts once for a run; no result changes by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.checkpoint.load import build
from avila_diffusion.config import TransformerConfig, UNetBlockConfig, UNetConfig
from avila_diffusion.kernels import build as built
from avila_diffusion.models.layers import Conv2d, Linear, keep_derived
from avila_diffusion.models.text_keys import TextKeys
from avila_diffusion.models.unet import CrossAttention, UNet
from avila_diffusion.models.weights import LowRank

CONTEXT, TOKENS = 48, 7


def row(inner: int, outer: int, transformer: TransformerConfig | None, **more: Any) -> UNetBlockConfig:
    return UNetBlockConfig(in_channels=inner, out_channels=outer, transformer=transformer, **more)


def config(adm: int | None = None, self_attention: bool = True, linear: bool = False, top: bool = True) -> UNetConfig:
    """Two levels of 64 and 128 channels; top: with attention on the first."""
    looks = TransformerConfig(depth=1, heads=4, self_attention=self_attention)
    first = looks if top else None
    return UNetConfig(
        in_channels=4,
        out_channels=4,
        model_channels=64,
        embed_channels=96,
        context_channels=CONTEXT,
        input_blocks=(
            row(4, 64, None, residual=False),
            row(64, 64, first),
            row(64, 64, None, residual=False, resample="down"),
            row(64, 128, looks),
        ),
        middle=row(128, 128, looks),
        output_blocks=(
            row(256, 128, looks),
            row(192, 128, looks, resample="up"),
            row(192, 64, first),
            row(128, 64, None),
        ),
        linear_projection=linear,
        adm_channels=adm,
    )


CONFIGS: dict[str, UNetConfig] = {
    "sd1": config(),
    "sd2": config(linear=True),
    "sdxl": config(adm=40, linear=True, top=False),
    "text first": config(self_attention=False),
}


def make(wanted: UNetConfig, dtype: torch.dtype = torch.float32) -> UNet:
    network = build(lambda: UNet(wanted))
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, meant in network.state_dict().items():
        noise = torch.randn(meant.shape, generator=generator, dtype=torch.float64)
        scale = meant[0].numel() ** -0.5 if meant.dim() > 1 else 0.1
        state[name] = (noise * scale + (1 if meant.dim() == 1 and "weight" in name else 0)).to(dtype)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["ours", "torch"])
def which(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways: our kernels, where they are built, and torch's operations."""
    if request.param == "ours" and (built.library() is None or not kernels.ENABLED):
        pytest.skip(f"no kernels of ours here: {built.problem}")
    monkeypatch.setattr(kernels, "ENABLED", request.param == "ours")
    return str(request.param)


def same(which: str, found: Tensor, wanted: Tensor) -> None:
    """Bit for bit by our kernels; torch's libraries sum in another order for another number of rows."""
    assert found.shape == wanted.shape
    assert 0.05 < float(wanted.abs().mean()) < 20
    if which == "ours":
        assert torch.equal(found, wanted)
    else:
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def vectors(network: UNet, batch: int) -> Tensor | None:
    return None if network.config.adm_channels is None else draw(batch, network.config.adm_channels)


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_x_for_all_conds(name: str, batch: int, which: str) -> None:
    network = make(CONFIGS[name])
    x, t, context = draw(1, 4, 24, 20), torch.tensor([481.5]), draw(batch, TOKENS, CONTEXT)
    vector = vectors(network, batch)
    whole = network(x.expand(batch, -1, -1, -1), t.expand(batch), context, vector=vector)
    same(which, network(x, t, context, vector=vector), whole)
    same(which, network(x.expand(batch, -1, -1, -1), t, context, vector=vector), whole)
    for index in range(batch):
        one = vector if vector is None else vector[index : index + 1]
        same(which, whole[index : index + 1], network(x, t, context[index : index + 1], vector=one))
    assert not torch.allclose(whole[:1], whole[1:2], atol=1e-3), "the conds make a difference"


def test_one_vector_for_all_conds(which: str) -> None:
    network = make(CONFIGS["sdxl"])
    x, t, context, vector = draw(1, 4, 8, 8), torch.tensor([481.5]), draw(2, TOKENS, CONTEXT), draw(1, 40)
    whole = network(x.expand(2, -1, -1, -1), t.expand(2), context, vector=vector.expand(2, -1))
    found = network(x, t, context, vector=vector)
    same("torch", found, whole)  # the stride-2 convolution is torch's in either case, and shared here


def test_control_residuals_differ_between_conds(which: str) -> None:
    network = make(CONFIGS["sd1"])
    shapes = [(64, 8), (64, 8), (64, 4), (128, 4), (128, 4)]
    control = tuple(draw(2, channels, side, side) for channels, side in shapes)
    x, t, context = draw(1, 4, 8, 8), torch.tensor([17.0]), draw(2, TOKENS, CONTEXT)
    whole = network(x.expand(2, -1, -1, -1), t.expand(2), context, control=control)
    same(which, network(x, t, context, control=control), whole)


def batches(network: UNet, kind: type[torch.nn.Module], run: Callable[[], object]) -> list[int]:
    seen: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_the_layers_before_the_first_text_run_once() -> None:
    network = make(CONFIGS["sd1"])
    x, t, context = draw(1, 4, 8, 8), torch.tensor([17.0]), draw(2, TOKENS, CONTEXT)
    assert batches(network, CrossAttention, lambda: network(x, t, context)) == [1, 1] + [2] * 10
    assert batches(network, Conv2d, lambda: network(x, t, context))[:4] == [1, 1, 1, 1]  # the entry, a block, proj_in
    different = make(CONFIGS["sdxl"])
    run = lambda: different(x, t, context, vector=draw(2, 40))  # noqa: E731
    assert batches(different, Conv2d, run)[:2] == [1, 2], "vectors that differ part the conds in the first block"


def projections(network: UNet) -> Callable[[Callable[[], Tensor]], Counter[str]]:
    """Counts how often each to_k and to_v of the attention over the text runs."""
    layers = {name: module for name, module in network.named_modules() if ".attn2.to_" in name and name[-1] in "kv"}
    assert layers

    def count(run: Callable[[], Tensor]) -> Counter[str]:
        seen: Counter[str] = Counter()
        hooks = [
            layer.register_forward_hook(lambda *_, name=name: seen.update([name])) for name, layer in layers.items()
        ]
        run()
        for hook in hooks:
            hook.remove()
        assert set(seen) in (set(), set(layers)) or len(seen) == 1
        return seen

    return count


def test_keys_of_a_text_are_made_once(which: str) -> None:
    network = make(CONFIGS["sd1"])
    x, context, other, keys = draw(1, 4, 8, 8), draw(2, TOKENS, CONTEXT), draw(2, TOKENS, CONTEXT, seed=1), TextKeys()
    count = projections(network)

    def run(text: Tensor, time: float = 17.0, keys: TextKeys | None = keys) -> Tensor:
        return network(x, torch.tensor([time]), text, keys=keys)

    plain = {time: run(context, time, None) for time in (17.0, 500.0)}
    assert sum(count(lambda: run(context)).values()) == 12
    for time, wanted in plain.items():
        assert torch.equal(run(context, time), wanted), "the same bits"
        assert not count(lambda time=time: run(context, time))  # type: ignore[misc]
    assert keys.bytes == 4 * 2 * TOKENS * 2 * (2 * 64 + 4 * 128)
    assert torch.equal(run(other), run(other, keys=None)), "a prompt schedule's other text"
    assert not count(lambda: run(other))
    assert not count(lambda: run(context)), "and back"
    assert sum(count(lambda: run(context.clone())).values()) == 12, "known by identity, not by looks"


def test_keys_follow_what_they_were_made_of(which: str) -> None:
    network = make(CONFIGS["sd1"])
    x, t, context, keys = draw(1, 4, 8, 8), torch.tensor([17.0]), draw(2, TOKENS, CONTEXT), TextKeys()
    before = network(x, t, context, keys=keys)

    def differs() -> None:
        nonlocal before
        found = network(x, t, context, keys=keys)
        assert torch.equal(found, network(x, t, context)), "stale keys"
        assert not torch.equal(found, before)
        before = found

    layer = network.get_submodule("input_blocks.1.1.transformer_blocks.0.attn2.to_v")
    assert isinstance(layer, Linear)
    layer.change("weight", [LowRank(draw(64, 2), draw(2, CONTEXT), 0.5)])
    differs()
    layer.change("weight", [LowRank(draw(64, 2), draw(2, CONTEXT), 0.25)])
    differs()
    layer.restore()
    differs()
    layer.weight.mul_(2)
    differs()
    layer.weight = torch.nn.Parameter(draw(64, CONTEXT, seed=4) / 7, requires_grad=False)
    differs()
    context.mul_(-1)
    differs()
    keep_derived(network, 0)
    assert torch.equal(network(x, t, context, keys=keys), before)


def test_keys_are_bounded_and_wait_for_no_gradient() -> None:
    network = make(CONFIGS["sd1"])
    x, t, keys = draw(1, 4, 8, 8), torch.tensor([17.0]), TextKeys(most=2)
    count = projections(network)
    texts = [draw(2, TOKENS, CONTEXT, seed=seed) for seed in range(3)]
    for text in texts:
        network(x, t, text, keys=keys)
    assert keys.bytes == 2 * 4 * 2 * TOKENS * 2 * (2 * 64 + 4 * 128)
    assert not count(lambda: network(x, t, texts[1], keys=keys))
    assert count(lambda: network(x, t, texts[0], keys=keys)), "the one not used for longest was forgotten"
    with torch.enable_grad():
        wanted = texts[0].requires_grad_()
        network(x, t, wanted, keys=keys).sum().backward()
        network(x, t, wanted, keys=keys).sum().backward()
    assert wanted.grad is not None
    with torch.inference_mode():
        text = draw(2, TOKENS, CONTEXT)
        first = network(x, t, text, keys=keys).clone()
        text.mul_(-1)
        assert not torch.equal(network(x, t, text, keys=keys), first)
