"""Our text towers against transformers', narrow, in float64 to 1e-7 of the maximum: both naming styles, all layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.load import build
from avila_diffusion.checkpoint.shapes import read_clip_config, read_open_clip_config
from avila_diffusion.models.clip import ClipTextModel
from avila_diffusion.models.open_clip import OpenClipTextModel

TOLERANCE = 1e-7
WIDTH, LAYERS, HEADS = 64, 4, 4


def _reference(activation: str, fill: Any) -> tuple[CLIPTextModelWithProjection, dict[str, torch.Tensor]]:
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        projection_dim=48,
        hidden_act=activation,
        bos_token_id=998,
        eos_token_id=999,
    )
    model = CLIPTextModelWithProjection(config)
    state = {name: tensor for name, tensor in fill(model).items() if not name.endswith("position_ids")}
    return model, state


def _clip(state: dict[str, torch.Tensor], activation: str, assign: Any) -> ClipTextModel:
    config = read_clip_config({name: tuple(tensor.shape) for name, tensor in state.items()}, HEADS, activation)
    network: ClipTextModel = assign(build(lambda: ClipTextModel(config)), state)
    return network


def _open_clip_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under OpenCLIP's names: q, k and v stacked, the projection transposed."""
    head = "text_model."
    ours = {
        "token_embedding.weight": state[f"{head}embeddings.token_embedding.weight"],
        "positional_embedding": state[f"{head}embeddings.position_embedding.weight"],
        "ln_final.weight": state[f"{head}final_layer_norm.weight"],
        "ln_final.bias": state[f"{head}final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    for index in range(LAYERS):
        theirs, mine = f"{head}encoder.layers.{index}.", f"transformer.resblocks.{index}."
        for leaf in ("weight", "bias"):
            stacked = [state[f"{theirs}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            ours[f"{mine}attn.in_proj_{leaf}"] = torch.cat(stacked)
            ours[f"{mine}attn.out_proj.{leaf}"] = state[f"{theirs}self_attn.out_proj.{leaf}"]
            ours[f"{mine}ln_1.{leaf}"] = state[f"{theirs}layer_norm1.{leaf}"]
            ours[f"{mine}ln_2.{leaf}"] = state[f"{theirs}layer_norm2.{leaf}"]
            ours[f"{mine}mlp.c_fc.{leaf}"] = state[f"{theirs}mlp.fc1.{leaf}"]
            ours[f"{mine}mlp.c_proj.{leaf}"] = state[f"{theirs}mlp.fc2.{leaf}"]
    return ours


def _tokens(pad: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 990, (3, 77), generator=generator)
    tokens[:, 0] = 998
    for row, end in enumerate((76, 20, 1)):
        tokens[row, end] = 999
        tokens[row, end + 1 :] = pad
    return tokens


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("pad", [999, 0])
@pytest.mark.parametrize("style", ["clip", "open_clip"])
def test_equals_transformers(activation: str, pad: int, style: str, fill: Any, assign: Any, close: Any) -> None:
    reference, state = _reference(activation, fill)
    network: ClipTextModel | OpenClipTextModel
    if style == "clip":
        network = _clip(state, activation, assign)
    else:
        fused = _open_clip_state(state)
        shapes = {name: tuple(tensor.shape) for name, tensor in fused.items()}
        config = read_open_clip_config(shapes, HEADS, activation)
        network = assign(build(lambda: OpenClipTextModel(config)), fused)
    tokens = _tokens(pad)
    with torch.no_grad():
        theirs = reference(tokens, output_hidden_states=True)
        for skip in (1, 2, 4):
            ours = network(tokens, dtype=torch.float64, skip=skip, final_norm=False, pooled=True)
            close(ours.hidden, theirs.hidden_states[-skip], TOLERANCE)
            close(ours.pooled, theirs.text_embeds, TOLERANCE)
            alone = network(tokens, dtype=torch.float64, skip=skip, final_norm=False)
            assert torch.equal(alone.hidden, ours.hidden)
            assert alone.pooled is None
        normed = network(tokens, dtype=torch.float64, skip=1, final_norm=True)
        close(normed.hidden, theirs.last_hidden_state, TOLERANCE)


def test_mistakes_are_seen(fill: Any, assign: Any, close: Any) -> None:
    reference, state = _reference("quick_gelu", fill)
    tokens = _tokens(999)
    with torch.no_grad():
        theirs = reference(tokens, output_hidden_states=True)
        wrong_activation = _clip(state, "gelu", assign)(tokens, dtype=torch.float64)
        right = _clip(state, "quick_gelu", assign)
        wrong_skip = right(tokens, dtype=torch.float64, skip=2)
        last_token = right(
            tokens.clamp(max=998), dtype=torch.float64, pooled=True
        )  # no end token: the start's is taken
        for mistake, expected in (
            (wrong_activation.hidden, theirs.last_hidden_state),
            (wrong_skip.hidden, theirs.last_hidden_state),
            (last_token.pooled, theirs.text_embeds),
        ):
            with pytest.raises(AssertionError):
                close(mistake, expected, TOLERANCE)
