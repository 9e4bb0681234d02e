"""Our UNet against diffusers', narrow copies of every family in float64 to 1e-7 of the maximum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from avila_diffusion.checkpoint.keys import unet_from_diffusers
from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_unet_config
from avila_diffusion.models import unet as unet_module
from avila_diffusion.models.layers import GroupNorm, keep_derived
from avila_diffusion.models.unet import UNet, embed_timesteps

TOLERANCE = 1e-7
ATTENTION = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

SD1: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 128, 128),
    "layers_per_block": 2,
    "cross_attention_dim": 48,
    "attention_head_dim": 8,
    "down_block_types": (ATTENTION[0],) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + (ATTENTION[1],) * 3,
}
SD2 = {**SD1, "use_linear_projection": True, "attention_head_dim": [2, 4, 8, 8], "cross_attention_dim": 64}
SDXL = {
    **SD2,
    "block_out_channels": (32, 64, 128),
    "attention_head_dim": [2, 4, 8],
    "transformer_layers_per_block": [1, 2, 3],
    "down_block_types": ("DownBlock2D", ATTENTION[0], ATTENTION[0]),
    "up_block_types": (ATTENTION[1], ATTENTION[1], "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 6 * 16 + 40,
}
REFINER = {
    **SD2,
    "block_out_channels": (32, 64, 128, 128),
    "transformer_layers_per_block": 2,
    "down_block_types": ("DownBlock2D", ATTENTION[0], ATTENTION[0], "DownBlock2D"),
    "up_block_types": ("UpBlock2D", ATTENTION[1], ATTENTION[1], "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 5 * 16 + 40,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "sd1": SD1,
    "sd1_inpainting": {**SD1, "in_channels": 9},
    "sd1_pix2pix": {**SD1, "in_channels": 8},
    "sd1_lcm": {**SD1, "time_cond_proj_dim": 24},
    "sd2": SD2,
    "sd2_depth": {**SD2, "in_channels": 5},
    "sdxl": SDXL,
    "sdxl_refiner": REFINER,
    "ssd_like": {
        **SDXL,
        "transformer_layers_per_block": [[0, 0], [2, 1], [3, 2]],
        "reverse_transformer_layers_per_block": [[3, 2, 1], [2, 1, 1], [0, 0, 0]],
    },
    "koala_like": {**SDXL, "layers_per_block": 1, "mid_block_type": None},
    "vega_like": {**SDXL, "mid_block_type": "UNetMidBlock2D", "mid_block_only_cross_attention": False},
}


def _reference(name: str) -> UNet2DConditionModel:
    config = dict(FAMILIES[name])
    if name == "ssd_like":
        pytest.importorskip("diffusers")
        config["transformer_layers_per_block"] = [1, [2, 1], [3, 2]]
        config["reverse_transformer_layers_per_block"] = [[3, 2, 1], [2, 1, 1], 1]
    return UNet2DConditionModel(**config)


def _inputs(config: Any, batch: int = 2, side: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: dict[str, Any] = {
        "x": draw(batch, config.in_channels, side, side),
        "t": torch.tensor([981.0, 17.25][:batch], dtype=torch.float64),
        "context": draw(batch, 77, config.cross_attention_dim),
    }
    if config.projection_class_embeddings_input_dim:
        numbers = 6 if config.projection_class_embeddings_input_dim == 136 else 5
        inputs["ids"] = torch.tensor([[512.0, 768, 0, 16, 1024, 1024][:numbers]] * batch)
        inputs["pooled"] = draw(batch, 40)
    if config.time_cond_proj_dim:
        inputs["guidance"] = torch.full((batch,), 7.5, dtype=torch.float64)
    return inputs


def _run_reference(model: UNet2DConditionModel, inputs: dict[str, Any]) -> torch.Tensor:
    extra: dict[str, Any] = {}
    if "ids" in inputs:
        extra["added_cond_kwargs"] = {"text_embeds": inputs["pooled"], "time_ids": inputs["ids"]}
    if "control" in inputs:
        extra["down_block_additional_residuals"] = inputs["control"][:-1]
        extra["mid_block_additional_residual"] = inputs["control"][-1]
    if "guidance" in inputs:
        half = model.config.time_cond_proj_dim // 2  # the LCM pipeline's embedding of w = scale - 1
        rate = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        angle = (inputs["guidance"].float() - 1)[:, None] * 1000.0 * rate[None]
        extra["timestep_cond"] = torch.cat([angle.sin(), angle.cos()], dim=1).double()
    return model(inputs["x"], inputs["t"], inputs["context"], **extra).sample


def _vector(inputs: dict[str, Any]) -> torch.Tensor | None:
    if "ids" not in inputs:
        return None
    sizes = embed_timesteps(inputs["ids"].flatten(), 16).reshape(len(inputs["ids"]), -1)
    return torch.cat([inputs["pooled"], sizes.double()], dim=1)


def _ours(reference: UNet2DConditionModel, state: dict[str, torch.Tensor], assign: Any) -> UNet:
    names = unet_from_diffusers(state)
    assert len(names) == len(state), "every name is translated"
    ours = {name: state[theirs] for name, theirs in names.items()}
    heads = reference.config.attention_head_dim
    channels = reference.config.block_out_channels
    table = dict(zip(channels, heads if isinstance(heads, list) else [heads] * len(channels), strict=True))
    config = read_unet_config({name: tuple(tensor.shape) for name, tensor in ours.items()}, table.__getitem__)
    network: UNet = assign(build(lambda: UNet(config)), ours)
    return network


def _run(network: UNet, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return network(
            inputs["x"],
            inputs["t"],
            inputs["context"],
            vector=_vector(inputs),
            guidance=inputs.get("guidance"),
            control=inputs.get("control"),
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_diffusers(name: str, fill: Any, assign: Any, close: Any) -> None:
    reference = _reference(name)
    state = fill(reference)
    inputs = _inputs(reference.config)
    close(_run(_ours(reference, state, assign), inputs), _run_reference(reference, inputs), TOLERANCE)


def test_control_residuals_equal_diffusers(fill: Any, assign: Any, close: Any) -> None:
    reference = _reference("sd1")
    state = fill(reference)
    inputs = _inputs(reference.config)
    widths = [32] * 4 + [64] * 3 + [128] * 6
    sides = [8] * 3 + [4] * 3 + [2] * 3 + [1] * 4
    inputs["control"] = tuple(torch.randn(2, c, s, s, dtype=torch.float64) for c, s in zip(widths, sides, strict=True))
    close(_run(_ours(reference, state, assign), inputs), _run_reference(reference, inputs), TOLERANCE)


MISTAKES = {
    "norm epsilon of residual blocks": lambda network: _set_eps(network, 1e-5, 1e-6),
    "norm epsilon of transformers": lambda network: _set_eps(network, 1e-6, 1e-5),
    "one head more or less": lambda network: _halve_heads(network),
    "skips in the wrong order": lambda network: _swap_rows(network),
}


def _set_eps(network: UNet, old: float, new: float) -> None:
    for module in network.modules():
        if isinstance(module, GroupNorm) and module.eps == old:
            module.eps = new


def _halve_heads(network: UNet) -> None:
    for module in network.modules():
        if isinstance(module, unet_module.CrossAttention):
            module.heads //= 2


def _swap_rows(network: UNet) -> None:
    network.output_blocks[0], network.output_blocks[1] = network.output_blocks[1], network.output_blocks[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_network_is_seen(mistake: str, fill: Any, assign: Any, close: Any) -> None:
    reference = _reference("sd1")
    state = fill(reference)
    inputs = _inputs(reference.config, side=16)
    network = _ours(reference, state, assign)
    MISTAKES[mistake](network)
    with pytest.raises(AssertionError):
        close(_run(network, inputs), _run_reference(reference, inputs), TOLERANCE)


def test_a_mistake_in_functions_is_seen(fill: Any, assign: Any, close: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = _reference("sd1")
    state = fill(reference)
    inputs = _inputs(reference.config)
    network = _ours(reference, state, assign)
    expected = _run_reference(reference, inputs)
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(unet_module, "embed_timesteps", lambda t, c: embed_timesteps(t.round(), c))
        close(_run(network, inputs), expected, TOLERANCE)
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        exact = F.gelu
        patch.setattr(F, "gelu", lambda x: exact(x, approximate="tanh"))
        close(_run(network, inputs), expected, TOLERANCE)
    close(_run(network, inputs), expected, TOLERANCE)


def test_a_batch_equals_its_items(fill: Any, assign: Any) -> None:
    reference = _reference("sd2")
    network = _ours(reference, fill(reference), assign)
    inputs = _inputs(reference.config)
    both = _run(network, inputs)
    for index in range(2):
        one = {name: value[index : index + 1] for name, value in inputs.items()}
        torch.testing.assert_close(_run(network, one), both[index : index + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(9, 12), (16, 23), (8, 8)])
def test_any_latent_size_runs(size: tuple[int, int], fill: Any, assign: Any) -> None:
    reference = _reference("sd1")
    network = _ours(reference, fill(reference), assign)
    inputs = _inputs(reference.config)
    inputs["x"] = torch.randn(2, 4, *size, dtype=torch.float64)
    assert _run(network, inputs).shape == (2, 4, *size)


def test_derived_weights_follow_their_sources(fill: Any, assign: Any) -> None:
    reference = _reference("sd1")
    network = _ours(reference, fill(reference), assign)
    inputs = _inputs(reference.config)
    before = _run(network, inputs)
    single = {name: value.float() for name, value in inputs.items()}
    assert _run(network, single).dtype == torch.float32
    assert torch.equal(_run(network, inputs), before), "another dtype in between changes nothing"
    keep_derived(network, 0)
    assert torch.equal(_run(network, inputs), before), "nor does making them at every call"
    keep_derived(network, None)
    with torch.no_grad():
        network.get_parameter("out.2.bias").add_(1.0)
    assert torch.allclose(_run(network, inputs), before + 1.0), "a source that was written to is derived again"
