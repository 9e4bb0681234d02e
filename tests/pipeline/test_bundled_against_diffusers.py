"""The bundled model's trained weights in diffusers' and transformers' networks: same noise, same latent and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from avila_diffusion.checkpoint.bundled import resource
from avila_diffusion.checkpoint.keys import unet_from_diffusers, vae_from_diffusers
from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.checkpoint.safetensors import TensorFile
from avila_diffusion.config import VAEConfig
from avila_diffusion.device import choose_policy
from avila_diffusion.pipeline import run as run_module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.latents import decode
from avila_diffusion.request import GenerateRequest
from avila_diffusion.sampling.noise import initial_noise, noise_source
from avila_diffusion.text.tokenizer import clip_tokenizer

FILE = Path(str(resource()))
pytestmark = [
    pytest.mark.skipif(not FILE.is_file(), reason="this source folder has no bundled model"),
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers' scheduler beside numpy 2
]
PROMPT, NEGATIVE, SCALE, STEPS = "a 3d render of a red apple", "flat emoji", 4.0, 8


def _under(prefix: str) -> dict[str, Tensor]:
    with TensorFile(FILE, mapped=False) as file:
        return {name.removeprefix(prefix): file.tensor(name) for name in file.names if name.startswith(prefix)}


def _load(network: Any, ours: dict[str, Tensor], names: dict[str, str], dtype: torch.dtype) -> Any:
    shapes = network.state_dict()
    network.load_state_dict({theirs: ours[mine].reshape(shapes[theirs].shape) for mine, theirs in names.items()})
    return network.to(dtype).eval().requires_grad_(False)


def _diffusers(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    spec = load_model(FILE).spec
    channels = tuple(dict.fromkeys(row.out_channels for row in spec.unet.input_blocks))
    crossed = {row.out_channels for row in spec.unet.input_blocks if row.transformer}
    down = tuple("CrossAttnDownBlock2D" if width in crossed else "DownBlock2D" for width in channels)
    unet: Any = UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=sum(row.residual for row in spec.unet.input_blocks) // len(channels),
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        cross_attention_dim=spec.unet.context_channels,
        attention_head_dim=[width // 32 for width in channels],
        use_linear_projection=True,
    )
    assert isinstance(spec.vae, VAEConfig)
    vae: Any = AutoencoderKL(
        block_out_channels=spec.vae.decoder_channels,
        layers_per_block=1,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False,
    )
    tower = spec.text[0].config
    text: Any = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=tower.width,
            intermediate_size=tower.mlp,
            num_hidden_layers=tower.layers,
            num_attention_heads=tower.heads,
            projection_dim=tower.width,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    _load(unet, _under("model.diffusion_model."), unet_from_diffusers(unet.state_dict()), dtype)
    decoder = {mine: theirs for mine, theirs in vae_from_diffusers(vae.state_dict()).items() if "encoder" not in mine}
    shapes = vae.state_dict()
    weights = {k: v.reshape(shapes[decoder[k]].shape) for k, v in _under("first_stage_model.").items() if k in decoder}
    vae.load_state_dict({decoder[k]: v for k, v in weights.items()}, strict=False)
    text.load_state_dict(_under("cond_stage_model.transformer.") | {"text_projection.weight": torch.eye(tower.width)})
    return unet, vae.to(dtype).eval(), text.to(dtype).eval()


@torch.no_grad()
def _reference(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Euler's method by diffusers' own scheduler: the latent and the picture."""
    unet, vae, text = _diffusers(dtype)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(STEPS)
    tokens = torch.tensor([clip_tokenizer().encode_padded(words) for words in (NEGATIVE, PROMPT)])
    context = text(tokens).last_hidden_state
    x = initial_noise(noise_source("nv", 3), (4, 16, 16)).to(dtype) * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        base, cond = unet(torch.cat([scaled] * 2), t, context).sample.chunk(2)
        x = scheduler.step(base + SCALE * (cond - base), t, x).prev_sample
    return x, vae.decode(x).sample


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_weights_and_noise_give_the_same_latent(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ModelEngine.of(load_model(FILE), choose_policy("cpu", dtype))
    kept: list[Tensor] = []

    def keep(vae: Any, x: Tensor, *rest: Any) -> Tensor:
        picture = decode(vae, x, *rest)
        kept.extend((x, picture))
        return picture

    monkeypatch.setattr(run_module, "decode", keep)
    request = GenerateRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        width=128,
        height=128,
        steps=STEPS,
        sampler="Euler",
        schedule="Karras",
        guidance_scale=SCALE,
        seed=3,
    )
    list(engine.generate(request))
    latent, picture = _reference(getattr(torch, dtype))
    assert 0.3 < float(latent.std()) < 3
    # diffusers keeps its sigmas and timesteps in float32 whatever the networks compute in.
    torch.testing.assert_close(kept[0], latent, rtol=0, atol=1e-4 * float(latent.abs().max()))
    torch.testing.assert_close(kept[1], picture, rtol=0, atol=1e-3)
